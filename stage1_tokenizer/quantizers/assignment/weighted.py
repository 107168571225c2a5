"""Sums of weights that are functions of p, where p weighs anything."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage1_tokenizer.quantizers.assignment.lists import Lists
from stage1_tokenizer.quantizers.assignment.scores import Scores
from stage1_tokenizer.quantizers.assignment.search import search
from stage1_tokenizer.quantizers.assignment.tiles import tiles
from stage1_tokenizer.quantizers.assignment.whole_rows import WholeRows

AT_ONCE = 1 << 16  # codes


@torch.no_grad()
def weighted_sums(
    scores: Scores,
    weigh: Callable[[Float[Tensor, "*s"], Int[Tensor, "*s"], Int[Tensor, "*s"]], Float[Tensor, "*s"]],
    steepness: float,
    collected: Float[Tensor, "n r"],
) -> tuple[Float[Tensor, " n"], Float[Tensor, " k"], Float[Tensor, "k r"]]:
    """sum_k w_ik, sum_i w_ik and sum_i w_ik collected_i of w = weigh(p, vector, code), entry by entry, 0 where p is.

    steepness: w is at most so many times p. Codes are left out that weigh less than rounding together, by their w.
    """
    n, k = len(scores.left), len(scores.codebook)
    found = search(scores, farther=max(0.0, math.log(steepness)) if steepness > 0 else 0.0)
    lists = Lists(found.row, found.column, n, k)
    shift = found.shift.index_select(0, found.row)
    w = weigh((found.logit - shift[:, 0] - shift[:, 1]).exp_(), found.row.long(), found.column.long())
    of_vectors = collected.new_zeros(n).index_add_(0, found.row, w)
    of_codes = collected.new_zeros(k).index_add_(0, found.column, w)
    by_code = lists.by_code(w)
    sums = torch.cat([by_code(part, collected)[0] for part in tiles(slice(0, k), AT_ONCE)])
    rows = WholeRows.of(scores, scores.codebook, found.shift, found.whole)
    if len(found.whole):
        rows.add_weighted(weigh, found.whole, collected[found.whole], of_vectors, of_codes, sums)
    return of_vectors, of_codes, sums
