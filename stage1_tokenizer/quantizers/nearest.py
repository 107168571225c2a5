"""Which code is nearest, or has the largest product, in memory that does not grow with vectors times codes."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage1_tokenizer.quantizers.assignment.scores import Scores
from stage1_tokenizer.quantizers.assignment.search import best_codes
from stage1_tokenizer.quantizers.assignment.tiles import tiles
from stage1_tokenizer.quantizers.precision import full_precision

CODES_AT_ONCE = 1 << 14


@torch.no_grad()
def nearest_codes(z: Float[Tensor, "n c"], codebook: Float[Tensor, "k c"]) -> Int[Tensor, " n"]:
    """argmin_k |z - e_k|^2, the lowest index on ties, from float32 (or float64) distances."""
    with full_precision(z.device):
        return best_codes(Scores.of(z, codebook, z.new_ones(()), None, True))


@torch.no_grad()
def largest_products(
    z: Float[Tensor, "n c"], codes: Float[Tensor, "k c"], bias: Float[Tensor, " k"] | None = None
) -> Int[Tensor, " n"]:
    """argmax_k of z.e_k + bias_k, the lowest index on ties, in float32 (or float64)."""
    with full_precision(z.device):
        return best_codes(Scores.of(z, codes, z.new_ones(()), bias, False))


def squared_distances(z: Float[Tensor, "n c"], codebook: Float[Tensor, "k c"]) -> Float[Tensor, "n k"]:
    """|z - e_k|^2 for every pair, with gradient, without the (n, k, c) differences; in full precision. Dense in n * k."""
    with full_precision(z.device):
        centre = codebook.detach().mean(0)  # distances are the same, and |e|^2 - 2 z.e cancels less
        z, codes = z - centre, codebook - centre
        distances = torch.addmm(codes.square().sum(1), z, codes.T, alpha=-2) + z.square().sum(1, keepdim=True)
        return distances.clamp_min(0)


@torch.no_grad()
def two_nearest(z: Float[Tensor, "n c"], codebook: Float[Tensor, "k c"]) -> Float[Tensor, "n 2"]:
    """Squared distances to the nearest and the second-nearest code (a single code counts twice); for few vectors."""
    best = z[:, :0]
    for part in tiles(slice(0, len(codebook)), CODES_AT_ONCE):
        distances = squared_distances(z, codebook[part])
        first, at = distances.min(1, keepdim=True)
        second = distances.scatter_(1, at, torch.inf).amin(1, keepdim=True)  # several times as fast as topk
        best = torch.cat([best, first, second], 1).topk(2, largest=False).values
    return torch.where(best.isinf(), best[:, :1], best)
