"""Soft assignment in tiles, in PyTorch: p is made where it weighs anything, used, and made again in the backward pass."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stage1_tokenizer.quantizers.assignment.lists import Lists
from stage1_tokenizer.quantizers.assignment.scores import Scores
from stage1_tokenizer.quantizers.assignment.search import search
from stage1_tokenizer.quantizers.assignment.tiles import in_threads, shares, tiles
from stage1_tokenizer.quantizers.assignment.whole_rows import WholeRows
from stage1_tokenizer.quantizers.precision import full_precision

LISTED_AT_ONCE = 1 << 13  # codes


def assign(*inputs: Any) -> tuple[Tensor, ...]:
    """What `soft_assign` gives, from z "n c", codebook "k c", weights "" or "k", prior "k", values "k v", collected "n r"."""
    with full_precision(inputs[0].device):
        return StreamingAssignment.apply(*inputs)  # pyright: ignore[reportReturnType]


class StreamingAssignment(torch.autograd.Function):
    """With cotangents g of the codes, a of the purity, b of the usage and f of the log partition, and G = g values^T + 2 a p
    + b / n, the logits' gradient is h = p (G - D + f), where D = sum_k p G. A vector with few codes within the margin takes
    part as the row of a sparse matrix, another in tiles of all codes. With as many threads, results repeat bit for bit.

    Of a sparse row D is the sum of the very p G that it is subtracted from: where one code has all the weight, h is 0, not the
    rounding of g.codes against g.values, which 1 / temperature would make as large as a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        codebook: Tensor,
        weights: Tensor,
        prior: Tensor | None,
        values: Tensor | None,
        collected: Tensor,
        distance: bool,
    ) -> tuple[Tensor, ...]:
        (n, _), k = z.shape, len(codebook)
        scores, averaged = Scores.of(z, codebook, weights, prior, distance), codebook if values is None else values
        found = search(scores)
        lists, shift, whole = Lists(found.row, found.column, n, k), found.shift, found.whole
        p = (found.logit - shift[:, 0].index_select(0, found.row) - shift[:, 1].index_select(0, found.row)).exp_()
        codes = lists.averages(p, averaged) + 0 * shift[:, :1]  # nan where a vector is not finite
        purity = (0 * shift[:, 0]).index_add_(0, lists.row, p * p)
        usage = torch.zeros_like(codebook[:, 0]).index_add_(0, lists.column, p)
        sums = z.new_zeros(k, collected.shape[1])
        if collected.shape[1] and len(p):
            by_code = lists.by_code(p)
            for part in tiles(slice(0, k), LISTED_AT_ONCE):
                (sums[part],) = by_code(part, collected)
        if len(whole):
            rows = WholeRows.of(scores, averaged, shift, whole)
            codes[whole], purity[whole] = rows.statistics(collected[whole], usage, sums)
        ctx.save_for_backward(z, codebook, weights, prior, values, codes, purity, shift, whole, lists.row, lists.column, p)
        ctx.distance = distance
        skipped = 1 - (len(p) / k + len(whole)) / max(n, 1)
        outputs = codes, found.index, purity, usage.div_(n), shift.sum(1) + scores.row, sums, z.new_tensor(skipped)
        ctx.mark_non_differentiable(found.index, sums, outputs[-1])
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        z, codebook, weights, prior, values, codes, purity, shift, whole, row, column, p = ctx.saved_tensors
        g, _, a, b, f, *_ = cotangents
        n, k = len(z), len(codebook)
        with full_precision(z.device):
            scores, averaged = Scores.of(z, codebook, weights, prior, ctx.distance), codebook if values is None else values
            g = torch.zeros_like(codes) if g is None else g
            a = torch.zeros_like(purity) if a is None else 2 * a
            b = torch.zeros_like(codebook[:, 0]) if b is None else b / n
            f = torch.zeros_like(purity) if f is None else f

            lists, less = Lists(row, column, n, k), -f  # D - f
            h = lists.products(g, averaged).add_(b.index_select(0, column)).addcmul_(a.index_select(0, row), p)
            less.index_add_(0, row, p * h)
            h.sub_(less.index_select(0, row)).mul_(p)
            to_left = lists.averages(h, scores.right(slice(0, k)))
            by_code = lists.by_code(h, p)
            del h  # as long as the lists, at the height of what is held

            rows = WholeRows.of(scores, averaged, shift, whole)
            less[whole] += torch.linalg.vecdot(g[whole], codes[whole]) + a[whole] * purity[whole]
            if len(whole) and cotangents[3] is not None:
                less[whole] += rows.expectation(b)
            left = torch.cat([g, torch.ones_like(g[:, :1]), -less[:, None]], 1)[whole]
            doubled = None if cotangents[2] is None else a[whole, None]
            to_codebook, to_weights, to_prior = torch.zeros_like(codebook), torch.zeros_like(b), torch.zeros_like(b)
            to_values = None if values is None else torch.zeros_like(values)

            def sweep(share: slice) -> Tensor:
                to_rows, work = scores.left.new_zeros(len(whole), scores.left.shape[1]), rows.work()
                for part in tiles(share, rows.at_once if len(whole) else LISTED_AT_ONCE):
                    to_right, to_value = by_code(part, scores.left, g)
                    if len(whole):
                        right = torch.cat([averaged[part], b[part, None], torch.ones_like(b[part, None])], 1)
                        more = rows.add_gradients(part, work, left, right, doubled, to_rows)
                        to_right, to_value = to_right + more[0], to_value + more[1]
                    to_codebook[part], to_weights[part], to_prior[part] = scores.to_codes(part, to_right)
                    (to_codebook if to_values is None else to_values)[part] += to_value
                return to_rows

            parts = in_threads(sweep, shares(k, z.device))
            to_left[whole] += torch.stack(parts).sum(0)
            to_z, to_weight = scores.to_vectors(to_left, f)
            to_weights = to_weights if weights.ndim else to_weights.sum() + to_weight
        return to_z, to_codebook, to_weights, None if prior is None else to_prior, to_values, None, None
