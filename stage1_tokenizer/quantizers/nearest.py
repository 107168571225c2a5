"""Which code is nearest, in memory that does not grow with vectors times codes."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage1_tokenizer.quantizers.precision import full_precision

TILE = {"cpu": 1 << 20}  # distances held at once; on the CPU a tile stays in the cache
TILE_ELSEWHERE = 1 << 26
CODES_AT_ONCE = 1 << 14


@torch.no_grad()
def nearest_codes(
    z: Float[Tensor, "n c"], codebook: Float[Tensor, "k c"], tile: int | None = None
) -> Int[Tensor, " n"]:
    """argmin_k |z - e_k|^2, the lowest index on ties, from float32 (or float64) distances; `tile` bounds the memory."""
    if len(z) == 0:
        return torch.empty(0, dtype=torch.int64, device=z.device)
    tile = tile or TILE.get(z.device.type, TILE_ELSEWHERE)
    columns = min(len(codebook), CODES_AT_ONCE, tile)
    rows = max(1, tile // columns)
    with full_precision(z.device):
        centre = codebook.mean(0)  # distances are the same, and |e|^2 - 2 z.e cancels less
        codes = codebook - centre
        norms = codes.square().sum(1)
        return torch.cat([_nearest(part - centre, codes, norms, columns) for part in z.split(rows)])


def _nearest(z: Tensor, codes: Tensor, norms: Tensor, columns: int) -> Tensor:
    best, index = None, torch.zeros(len(z), dtype=torch.int64, device=z.device)
    for start in range(0, len(codes), columns):
        part = slice(start, start + columns)
        # |z|^2 is the same for every code, so it is left out
        value, at = torch.addmm(norms[part], z, codes[part].T, alpha=-2).min(1)
        if best is None:
            best, index = value, at
        else:
            closer = value < best  # strictly: on ties the lower index stays
            best, index = torch.where(closer, value, best), torch.where(closer, at + start, index)
    return index


def squared_distances(z: Float[Tensor, "n c"], codebook: Float[Tensor, "k c"]) -> Float[Tensor, "n k"]:
    """|z - e_k|^2 for every pair, with gradient, without the (n, k, c) differences; in full precision. Dense in n * k."""
    with full_precision(z.device):
        centre = codebook.detach().mean(0)  # distances are the same, and |e|^2 - 2 z.e cancels less
        z, codes = z - centre, codebook - centre
        distances = torch.addmm(codes.square().sum(1), z, codes.T, alpha=-2) + z.square().sum(1, keepdim=True)
        return distances.clamp_min(0)


@torch.no_grad()
def two_nearest(z: Float[Tensor, "n c"], codebook: Float[Tensor, "k c"]) -> Float[Tensor, "n 2"]:
    """Squared distances to the nearest and the second-nearest code (a single code counts twice). Dense: for few vectors."""
    return squared_distances(z, codebook).topk(min(2, len(codebook)), largest=False).values.expand(-1, 2)
