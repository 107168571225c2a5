"""Soft assignment of vectors to codes, p_ik = softmax_k of the logits, in the few statistics that methods need of it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from stage1_tokenizer.quantizers.options import one_of
from stage1_tokenizer.quantizers.precision import full_precision


@dataclass(frozen=True)
class SoftAssignment:
    """No field is of size n * k, so that an implementation need not hold p. All but `index` carry gradient."""

    codes: Float[Tensor, "n c"]  # sum_k p_ik c_k
    index: Int[Tensor, " n"]  # argmax_k of the logits, the lowest on ties
    purity: Float[Tensor, " n"]  # S_i = sum_k p_ik^2, between 1/k and 1
    usage: Float[Tensor, " k"]  # u_k = mean_i p_ik
    log_partition: Float[Tensor, " n"]  # log sum_k exp(logit_ik)


def soft_assign(
    z: Float[Tensor, "n c"],
    codebook: Float[Tensor, "k c"],
    temperature: float | Float[Tensor, ""],
    similarity: str = "squared_distance",
    widths: Float[Tensor, " k"] | None = None,
) -> SoftAssignment:
    """Assign with logits -|z - c_k|^2 / (temperature * width_k), or cos(z, c_k) or z.c_k in place of -|z - c_k|^2.

    Gradient flows to z, codebook, temperature and widths. Plain autograd over dense (n, k) tensors.
    Raises ValueError for an unknown similarity.
    """
    with full_precision(z.device):
        weights = 1 / (temperature if widths is None else temperature * widths)
        logits, row = SIMILARITIES[one_of("soft_assign.similarity", similarity, SIMILARITIES)](z, codebook, weights)
        index = logits.argmax(1)
        p = logits.softmax(1)
        # log sum exp by way of one entry per row: no further pass over (n, k) unless its gradient is asked for
        at = index[:, None]
        log_partition = (logits.gather(1, at) - p.gather(1, at).log()).squeeze(1) + row
        return SoftAssignment(p @ codebook, index, torch.linalg.vecdot(p, p), p.mean(0), log_partition)


# Each similarity gives the logits as one matrix product with bias, less a term per row that the softmax does not see.


def _squared_distance(z: Tensor, codebook: Tensor, weights: Tensor | float) -> tuple[Tensor, Tensor]:
    centre = codebook.detach().mean(0)  # distances are the same, and |c|^2 - 2 z.c cancels less
    z, codebook = z - centre, codebook - centre
    norms = codebook.square().sum(1)
    squares = z.square().sum(1)
    if isinstance(weights, Tensor) and weights.ndim:
        z = torch.cat([z, squares[:, None]], 1)
        rows = torch.cat([2 * weights[:, None] * codebook, -weights[:, None]], 1)
        return torch.addmm(-weights * norms, z, rows.T), torch.zeros_like(squares)
    return torch.addmm(-weights * norms, z, 2 * weights * codebook.T), -weights * squares


def _dot(z: Tensor, codebook: Tensor, weights: Tensor | float) -> tuple[Tensor, Tensor]:
    return z @ (weights * codebook.T), z.new_zeros(len(z))


def _cosine(z: Tensor, codebook: Tensor, weights: Tensor | float) -> tuple[Tensor, Tensor]:
    return _dot(F.normalize(z, dim=1), F.normalize(codebook, dim=1), weights)


SIMILARITIES = {"squared_distance": _squared_distance, "cosine": _cosine, "dot": _dot}
