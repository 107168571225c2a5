"""SCQ: soft convex quantization, the best convex combination of codes (Gautam et al. 2023, arXiv 2310.03004)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.codebooks import start_from_data
from stage1_tokenizer.quantizers.distortion import codebook_and_commitment
from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes
from stage1_tokenizer.quantizers.precision import full_precision


class SCQ(Quantizer):
    """q = E^T p, p = argmin over the simplex of |z - E^T p|^2 + lam |p - p~|^2, p~ one-hot at the nearest code: in training.

    In eval, and for the index always, the nearest code: published scores are those of the soft q, of infinite bits; ours of
    the hard one. The gradient is implicit: on the support p solves linear equations (KKT), which are differentiated.
    The paper's scalable form solves without p >= 0 by Woodbury, in c dimensions instead of K, and projects onto the simplex
    once; `iterations` of ADMM repeat just these two and converge to the exact p. Dense in vectors times codes.
    INFERRED: `vq`'s codebook and commitment terms, so that the hard code serves; ADMM and its step (the paper: a QP solver);
    codes start from data.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        proximity_weight: float = 0.1,
        iterations: int = 10,
        commitment_weight: float = 0.25,
    ) -> None:
        super().__init__(dim, [codebook_size])
        self.proximity_weight = proximity_weight
        self.iterations = iterations
        self.commitment_weight = commitment_weight
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        index = nearest_codes(z, self.codebook)
        hard = F.embedding(index, self.codebook)
        if not self.training:
            return QuantizerOutput(hard, index[:, None], {})
        losses = codebook_and_commitment(z, hard, self.commitment_weight)
        with full_precision(z.device):
            p = convex_weights(z, self.codebook, index, self.proximity_weight, self.iterations)
            path = on_support(z, self.codebook, index, self.proximity_weight, p > 0) @ self.codebook
            return QuantizerOutput(straight_through(path, p @ self.codebook), index[:, None], losses)

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.embedding(indices[:, 0], self.codebook)

    @torch.no_grad()
    def initialize(self, z: Float[Tensor, "n c"]) -> None:
        centres = start_from_data(z, len(self.codebook), "kmeans")
        # combinations only shrink, so the codes lie a little outside; and none is a vector, where p is constant
        self.codebook.copy_(centres + 0.1 * (centres - centres.mean(0)))


@torch.no_grad()
def convex_weights(
    z: Float[Tensor, "n c"], codebook: Float[Tensor, "k c"], near: Int[Tensor, " n"], weight: float, iterations: int
) -> Float[Tensor, "n k"]:
    """argmin over the simplex of |z - E^T p|^2 + weight |p - one_hot(near)|^2, by ADMM; always in the simplex.

    Each iteration is a Woodbury solve, (a I + E E^T)^-1 = (I - E (a I + E^T E)^-1 E^T) / a, and a projection.
    """
    one_hot = F.one_hot(near, len(codebook)).to(z)
    step = codebook.square().sum(1).mean() / 4 + weight
    damped = weight + step
    small = torch.linalg.inv(damped * torch.eye(z.shape[1]).to(z) + codebook.T @ codebook)
    fixed = z @ codebook.T + weight * one_hot
    p, dual = one_hot, torch.zeros_like(one_hot)
    for _ in range(iterations):
        right = fixed + step * (p - dual)
        free = (right - right @ codebook @ small @ codebook.T) / damped
        p = project_onto_simplex(free + dual)
        dual += free - p
    return p


def project_onto_simplex(x: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """The nearest point with p >= 0 and sum p = 1: relu(x - theta) (Duchi et al. 2008)."""
    sorted_x = x.sort(1, descending=True).values
    thetas = (sorted_x.cumsum(1) - 1) / torch.arange(1, x.shape[1] + 1).to(x)
    last = (sorted_x > thetas).sum(1, keepdim=True) - 1  # -1 where a number is NaN, and so is the result
    return (x - thetas.gather(1, last.clamp_min(0))).relu()


def on_support(
    z: Float[Tensor, "n c"],
    codebook: Float[Tensor, "k c"],
    near: Int[Tensor, " n"],
    weight: float,
    support: Bool[Tensor, "n k"],
) -> Float[Tensor, "n k"]:
    """The same minimum with p = 0 outside the support, sum p = 1 and no sign: linear equations, with gradient.

    H p = E_S z + weight one_hot + nu 1_S with H = E_S E_S^T + weight I, by Woodbury with one c x c matrix per vector.
    """
    mask = support.to(z)
    c = z.shape[1]
    squares = mask @ (codebook[:, :, None] * codebook[:, None]).flatten(1)
    small = torch.linalg.cholesky_ex(weight * torch.eye(c).to(z) + squares.unflatten(1, (c, c))).L

    def solve(right: Tensor) -> Tensor:
        inner = torch.cholesky_solve((right @ codebook)[:, :, None], small)[:, :, 0]
        return (right - mask * (inner @ codebook.T)) / weight

    plain = solve(mask * (z @ codebook.T + weight * F.one_hot(near, len(codebook)).to(z)))
    towards_one = solve(mask)
    return plain + (1 - plain.sum(1, keepdim=True)) / towards_one.sum(1, keepdim=True) * towards_one
