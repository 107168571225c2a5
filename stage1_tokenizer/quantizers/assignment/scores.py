"""Logits of vectors and codes as one matrix product, so that a tile of them is made at once, its bias and shift included."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """logit_ik = left_i . right_k + row_i: -weight_k |z_i - c_k|^2, or weight_k z_i.c_k; in both cases + prior_k.

    A softmax over the codes does not see row_i. Distances are those from `centre`, the codes' mean: they are the same, and
    |c|^2 - 2 z.c cancels less. Right sides are made for a part of the codes at a time; no second codebook is held.
    """

    left: Float[Tensor, "n f"]  # z - centre | 1, and |z - centre|^2 where codes have weights of their own
    row: Float[Tensor, " n"]
    codebook: Float[Tensor, "k c"]
    weights: Float[Tensor, "*k"]  # one, or one per code
    prior: Float[Tensor, " k"] | None
    centre: Float[Tensor, " c"] | None  # of distances

    @classmethod
    def of(
        cls,
        z: Float[Tensor, "n c"],
        codebook: Float[Tensor, "k c"],
        weights: Float[Tensor, "*k"],
        prior: Float[Tensor, " k"] | None,
        distance: bool,
    ) -> "Scores":
        """The scores of -|z - c|^2 if `distance`, else of z.c."""
        one = z.new_ones(len(z), 1)
        if not distance:
            return cls(torch.cat([z, one], 1), z.new_zeros(len(z)), codebook, weights, prior, None)
        centre = codebook.mean(0)
        z = z - centre
        squares = torch.linalg.vecdot(z, z)
        if weights.ndim:
            left = torch.cat([z, one, squares[:, None]], 1)
            return cls(left, torch.zeros_like(squares), codebook, weights, prior, centre)
        return cls(torch.cat([z, one], 1), -weights * squares, codebook, weights, prior, centre)

    def right(self, part: slice) -> Float[Tensor, "t f"]:
        """The right sides of some codes."""
        codes, weights = self._codes(part), self._weights(part)
        columns = [codes * (weights if self.centre is None else 2 * weights)]
        bias = torch.zeros_like(codes[:, :1])
        if self.centre is not None:
            bias -= weights * torch.linalg.vecdot(codes, codes)[:, None]
        if self.prior is not None:
            bias += self.prior[part, None]
        columns.append(bias)
        if self.weights.ndim and self.centre is not None:
            columns.append(-weights)
        return torch.cat(columns, 1)

    def to_codes(self, part: slice, gradient: Float[Tensor, "t f"]) -> tuple[Tensor, Tensor, Tensor]:
        """From a gradient of right sides those of the codes "t c", of each one's weight "t", and of the prior "t"."""
        codes, weights, c = self._codes(part), self._weights(part), self.codebook.shape[1]
        vectors, ones = gradient[:, :c], gradient[:, c]
        weight = torch.linalg.vecdot(codes, vectors)
        if self.centre is None:
            return weights * vectors, weight, ones
        weight = 2 * weight - torch.linalg.vecdot(codes, codes) * ones
        if self.weights.ndim:
            weight -= gradient[:, c + 1]
        return 2 * weights * (vectors - ones[:, None] * codes), weight, ones

    def to_vectors(self, gradient: Float[Tensor, "n f"], row: Float[Tensor, " n"] | None) -> tuple[Tensor, Tensor]:
        """From gradients of left sides and of `row` that of the vectors "n c", and the rows' part of the weight's, ""."""
        c = self.codebook.shape[1]
        z, vectors = self.left[:, :c], gradient[:, :c]
        if self.centre is None:
            return vectors, gradient.new_zeros(())
        if self.weights.ndim:
            return vectors + 2 * gradient[:, c + 1, None] * z, gradient.new_zeros(())
        if row is None:
            return vectors, gradient.new_zeros(())
        return vectors - 2 * self.weights * row[:, None] * z, -torch.linalg.vecdot(z, z) @ row

    def _codes(self, part: slice) -> Float[Tensor, "t c"]:
        return self.codebook[part] if self.centre is None else self.codebook[part] - self.centre

    def _weights(self, part: slice) -> Float[Tensor, "t 1"]:
        return self.weights[part, None] if self.weights.ndim else self.weights.reshape(1, 1)
