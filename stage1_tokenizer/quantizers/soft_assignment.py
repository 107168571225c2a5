"""Soft assignment of vectors to codes, p_ik = softmax_k of the logits, in the few statistics that methods need of it."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from stage1_tokenizer.quantizers.options import one_of
from stage1_tokenizer.quantizers.precision import full_precision


@dataclass(frozen=True)
class SoftAssignment:
    """No field is of size n * k, so that an implementation need not hold p. All but `index` and `sums` carry gradient."""

    codes: Float[Tensor, "n c"]  # sum_k p_ik c_k
    index: Int[Tensor, " n"]  # argmax_k of the logits, the lowest on ties
    purity: Float[Tensor, " n"]  # S_i = sum_k p_ik^2, between 1/k and 1
    usage: Float[Tensor, " k"]  # u_k = mean_i p_ik
    log_partition: Float[Tensor, " n"]  # log sum_k exp(logit_ik)
    sums: Float[Tensor, "k c"]  # sum_i p_ik z_i, without gradient: with the usage, what an EM step needs


def soft_assign(
    z: Float[Tensor, "n c"],
    codebook: Float[Tensor, "k c"],
    temperature: float | Float[Tensor, ""],
    similarity: str = "squared_distance",
    widths: Float[Tensor, " k"] | None = None,
    values: Float[Tensor, "k v"] | None = None,
) -> SoftAssignment:
    """Assign with logits -|z - c_k|^2 / (temperature * width_k), or cos(z, c_k) or z.c_k in place of -|z - c_k|^2.

    `values` take the codes' place in the mean sum_k p_ik c_k (the codes without gradient, say), not in the logits.
    Gradient flows to z, codebook, temperature, widths and values. Rows are taken in tiles that are computed again in the
    backward pass: memory grows with n + k, not with n * k. Raises ValueError for an unknown similarity.
    """
    similar = SIMILARITIES[one_of("soft_assign.similarity", similarity, SIMILARITIES)]
    with full_precision(z.device):
        left, right, bias, row = similar(z, codebook, 1 / (temperature if widths is None else temperature * widths))
        outputs = _Assign.apply(left, right, bias, codebook if values is None else values, z.detach())
        codes, index, purity, usage, log_partition, sums = outputs  # pyright: ignore[reportGeneralTypeIssues]
        return SoftAssignment(codes, index, purity, usage, log_partition + row, sums)


TILE = {"cpu": 1 << 19}  # entries of p held at once; on the CPU a tile stays in the cache
TILE_ELSEWHERE = 1 << 26


def _tiles(n: int, k: int, device: torch.device) -> list[slice]:
    rows = max(16, TILE.get(device.type, TILE_ELSEWHERE) // k)
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]


class _Assign(torch.autograd.Function):
    """p = softmax(x y^T + bias) and its statistics, row tile by row tile; x is "n f", y "k f", values "k v", z "n c".

    With cotangents g of the codes, a of the purity, b of the usage and f of the log partition, and G = g values^T + 2 a p
    + b / n, the logits' gradient is p (G - D + f), where D = sum_k p G. Matrix products are written with their long side
    last, and biases folded in: on the CPU that is several times faster.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, bias: Tensor, values: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        (n, _), k = x.shape, len(y)
        codes, index, usage = x.new_empty(values.shape[1], n), bias.new_empty(n, dtype=torch.int64), torch.zeros_like(bias)
        purity, log_partition, sums = x.new_empty(n), x.new_empty(n), x.new_zeros(z.shape[1], k)
        tiles, transposed = _tiles(n, k, x.device), values.T.contiguous()
        work = x.new_empty(2, tiles[0].stop if tiles else 0, k)  # made once: fresh tiles cost page faults
        for tile in tiles:
            logits, p = work[:, : tile.stop - tile.start]
            torch.addmm(bias, x[tile], y.T, out=logits)
            at = logits.argmax(1)
            torch.softmax(logits, 1, out=p)
            index[tile] = at
            codes[:, tile] = transposed @ p.T
            purity[tile] = torch.linalg.vecdot(p, p)
            usage += p.sum(0)
            sums.addmm_(z[tile].T, p)
            at = at[:, None]
            log_partition[tile] = (logits.gather(1, at) - p.gather(1, at).log()).squeeze(1)
        usage /= n
        codes = codes.T.contiguous()
        ctx.save_for_backward(x, y, bias, values, codes, purity)
        sums = sums.T
        ctx.mark_non_differentiable(index, sums)
        ctx.set_materialize_grads(False)
        return codes, index, purity, usage, log_partition, sums

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        x, y, bias, values, codes, purity = ctx.saved_tensors
        g, _, a, b, f, _ = cotangents
        (n, width), k = x.shape, len(y)
        g = torch.zeros_like(codes) if g is None else g
        a = None if a is None else 2 * a[:, None]
        b = torch.zeros_like(bias) if b is None else b / n
        less = (g * codes).sum(1)  # D - f, but for the usage's part
        less = less if a is None else less + a[:, 0] * purity
        less = less if f is None else less - f
        to_x, to_y, to_values = torch.zeros_like(x), x.new_zeros(width + 1, k), x.new_zeros(values.shape[1], k)
        with_one = torch.cat([x, x.new_ones(n, 1)], 1)
        y_transposed = y.T.contiguous()
        tiles = _tiles(n, k, x.device)
        work = x.new_empty(2, tiles[0].stop if tiles else 0, k)
        with full_precision(x.device):
            for tile in tiles:
                h, p = work[:, : tile.stop - tile.start]
                torch.addmm(bias, x[tile], y.T, out=h)
                torch.softmax(h, 1, out=p)
                torch.addmm(b, g[tile], values.T, out=h)
                h -= (less[tile] + p @ b)[:, None]
                if a is not None:
                    h.addcmul_(p, a[tile])
                h *= p
                torch.mm(h, y_transposed.T, out=to_x[tile])
                to_y.addmm_(with_one[tile].T, h)
                to_values.addmm_(g[tile].T, p)
        return to_x, to_y[:-1].T, to_y[-1], to_values.T, None


# Each similarity gives left and right of the logits as one matrix product left right^T + bias, and a term per row that the
# softmax does not see. Temperatures and widths are folded into the right side and the bias, where autograd finds them.


def _squared_distance(z: Tensor, codebook: Tensor, weights: Tensor | float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    centre = codebook.detach().mean(0)  # distances are the same, and |c|^2 - 2 z.c cancels less
    z, codebook = z - centre, codebook - centre
    bias = -weights * codebook.square().sum(1)
    squares = z.square().sum(1)
    if isinstance(weights, Tensor) and weights.ndim:
        right = torch.cat([2 * weights[:, None] * codebook, -weights[:, None]], 1)
        return torch.cat([z, squares[:, None]], 1), right, bias, torch.zeros_like(squares)
    return z, 2 * weights * codebook, bias, -weights * squares


def _dot(z: Tensor, codebook: Tensor, weights: Tensor | float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    each = weights[:, None] if isinstance(weights, Tensor) and weights.ndim else weights
    return z, each * codebook, codebook.new_zeros(len(codebook)), z.new_zeros(len(z))


def _cosine(z: Tensor, codebook: Tensor, weights: Tensor | float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _dot(F.normalize(z, dim=1), F.normalize(codebook, dim=1), weights)


SIMILARITIES = {"squared_distance": _squared_distance, "cosine": _cosine, "dot": _dot}
