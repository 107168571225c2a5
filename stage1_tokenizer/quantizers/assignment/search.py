"""One sweep over the scores of all codes: each vector's best, and which of the others weigh anything beside it.

A softmax gives code k the weight exp(l_ik - max_j l_ij) or less. Codes more than `margin` below the best are left out: K
codes of less than exp(-margin) each have less than K exp(-margin) together, which for margin = log K - log epsilon is the
precision epsilon of the numbers. Leaving them out changes p, and what is linear in it, by less than rounding does.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage1_tokenizer.quantizers.assignment.scores import Scores
from stage1_tokenizer.quantizers.assignment.tiles import in_threads, shares, tile_sizes, tiles

GROUP = 16  # codes whose largest score is compared with the margin at once
MOST_GROUPS = 0.6  # of the groups of a tile: with more, most codes of the tile are within the margin, or nearly
PRUNED = 1 << 16  # codes listed in a tile: with fewer, none is dropped before the end
MOST = 1 / 32  # of the codes may be within the margin on average: with more, computing all of them costs less
FEW = 4  # per vector are listed in any case: hard assignments have lists even among few codes


@dataclass(frozen=True)
class Found:
    index: Int[Tensor, " n"]  # argmax_k of the logits, the lowest on ties
    shift: Float[Tensor, "n 2"]  # the largest logit m, and log sum_k exp(logit - m): their sum is log Z, but rounded
    row: Int[Tensor, " m"]  # of the codes within the margin, vector after vector; int32
    column: Int[Tensor, " m"]  # int32
    logit: Float[Tensor, " m"]
    whole: Int[Tensor, " w"]  # the vectors whose codes are not listed, since there are many


def margin(k: int, dtype: torch.dtype) -> float:
    """k codes below the best by this much weigh less together than the rounding of 1."""
    return math.log(k) - math.log(torch.finfo(dtype).eps)


def most_listed(n: int, k: int, channels: int) -> float:
    """Codes per vector on average: few, and of all together no more than the vectors and the codes have numbers."""
    return min(max(MOST * k, FEW), (1 + k / n) * channels)


def least_logit(dtype: torch.dtype) -> float:
    """Logits below it may as well be it: exp of it weighs nothing, and its square is a normal number.

    Where exp underflows it takes a CPU up to a hundred times as long, and so does the arithmetic with what comes out.
    """
    return math.log(torch.finfo(dtype).tiny) / 2


def on_cpu(tensor: Tensor) -> bool:
    """Whether to pick out the few that matter: a GPU would have to wait to learn how many."""
    return tensor.device.type == "cpu"


def best_codes(scores: Scores) -> Int[Tensor, " n"]:
    """The code of the largest score, the lowest on ties."""
    if len(scores.left) == 0:
        return torch.zeros(0, dtype=torch.int64, device=scores.left.device)
    return torch.cat([tile.index for tile in _sweep(scores, False, False, 0.0)])


def search(scores: Scores, listing: bool = True, farther: float = 0.0) -> Found:
    """The best codes, the log partition and, if `listing` and on a CPU, the codes within the margin and `farther`."""
    if len(scores.left) == 0:
        number, place = scores.left.new_zeros(0), torch.zeros(0, dtype=torch.int32, device=scores.left.device)
        return Found(place.long(), number.new_zeros(0, 2), place, place, number, place.long())
    found = _sweep(scores, listing and on_cpu(scores.left), True, farther)
    row, column, logit = zip(*(tile.entries() for tile in found), strict=True)
    every = torch.arange(len(scores.left), device=scores.left.device)
    return Found(
        index=torch.cat([tile.index for tile in found]),
        shift=torch.cat([torch.stack([tile.best, tile.total.log()], 1) for tile in found]),
        row=torch.cat(row),
        column=torch.cat(column),
        logit=torch.cat(logit),
        whole=torch.cat([every[tile.rows] if tile.summing else every[:0] for tile in found]),
    )


def _sweep(scores: Scores, listing: bool, summing: bool, farther: float) -> list["_Tile"]:
    (n, _), k = scores.left.shape, len(scores.codebook)
    parts = shares(n, scores.left.device)
    rows, codes = tile_sizes(parts[0].stop, k, scores.left.device)

    def sweep(share: slice) -> list[_Tile]:
        found = [_Tile(scores, part, listing, summing, farther) for part in tiles(share, rows)]
        work = scores.left.new_empty(rows * (codes + GROUP))
        for part in tiles(slice(0, k), codes):
            right = _in_groups(scores.right(part), scores.codebook.shape[1])
            for tile in found:
                logits = work[: len(tile.left) * len(right)].view(-1, len(right))
                tile.see(torch.mm(tile.left, right.T, out=logits), part.start)
        return found

    return [tile for found in in_threads(sweep, parts) for tile in found]


def _in_groups(right: Float[Tensor, "t f"], bias: int) -> Float[Tensor, "u f"]:
    """The first of each GROUP codes, the second of each, and so on: the fastest to reduce. What lacks has a logit of -inf."""
    groups = -(-len(right) // GROUP)
    padded = right.new_zeros(groups * GROUP, right.shape[1])
    padded[len(right) :, bias] = -math.inf
    padded[: len(right)] = right
    return padded.view(groups, GROUP, -1).transpose(0, 1).flatten(0, 1)


class _Tile:
    """What is known of a tile of vectors after some of the codes."""

    def __init__(self, scores: Scores, rows: slice, listing: bool, summing: bool, farther: float) -> None:
        n, k = len(scores.left), len(scores.codebook)
        self.rows, self.left = rows, scores.left[rows]
        self.listing, self.summing = listing, summing and not listing
        self.best = self.left.new_full((len(self.left),), -math.inf)
        self.index = torch.zeros_like(self.best, dtype=torch.int64)
        self.total = torch.zeros_like(self.best)  # sum of exp(logit - best)
        self.margin, self.least = margin(k, self.best.dtype) + farther, least_logit(self.best.dtype)
        self.most = len(self.left) * most_listed(n, k, self.left.shape[1])
        self.length, self.room = 0, min(self.most, PRUNED)  # of the list: how long it is, and may be before it is pruned
        self.kept = [(self.index[:0].int(), self.index[:0].int(), self.best[:0])]  # row, column, logit

    def see(self, logits: Float[Tensor, "r t"], start: int) -> None:
        """The logits, which may be overwritten, of the codes from `start` on."""
        before, each = self.best, logits.view(len(logits), GROUP, -1)
        groups = each.amax(1)
        top, group = groups.max(1)
        if on_cpu(self.left):
            better = (top > before).nonzero().squeeze(1)
            group = group[better]
            self.index[better] = start + group * GROUP + each[better, :, group].argmax(1)
        else:
            member = each.take_along_dim(group[:, None, None], 2).argmax(1).squeeze(1)
            self.index = torch.where(top > before, start + group * GROUP + member, self.index)
        self.best = torch.maximum(before, top)
        reached = groups > self._bar()[:, None] if self.listing else groups
        if self.listing and reached.sum() > MOST_GROUPS * reached.numel() + len(reached):  # the best's own tells nothing
            self._stop_listing(before)
        if self.listing:
            self._list(each, reached, start)
        elif self.summing:
            lowest = torch.finfo(before.dtype).min  # instead of -inf, where no code so far has any weight
            before, best = before.clamp_min(lowest), self.best.clamp_min(lowest)
            logits.sub_(best[:, None]).clamp_min_(self.least).exp_()
            self.total.mul_((before - best).exp_()).add_(logits.sum(1))

    def _bar(self) -> Float[Tensor, " r"]:
        """Logits above it are within the margin, the best in any case: of large ones the margin is less than the rounding."""
        return torch.minimum(self.best - self.margin, self.best.nextafter(self.best.new_full((), -math.inf)))

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row, column and logit of the codes within the margin, in the order of rows; their weights are summed."""
        self._prune()
        if self.listing:
            self._sum(self.best)
        row, column, logit = self.kept[0]
        row, order = row.sort(stable=True)
        return row + self.rows.start, column[order], logit[order]

    def _list(self, each: Tensor, reached: Tensor, start: int) -> None:
        row, group = reached.nonzero().unbind(1)
        some = each[row, :, group]
        entry, member = (some > self._bar()[row, None]).nonzero().unbind(1)
        column = start + group[entry] * GROUP + member
        self.kept.append((row[entry].int(), column.int(), some[entry, member]))
        self.length += len(entry)
        if self.length > self.room:
            self._prune()
            self.room = min(self.most, max(PRUNED, 2 * self.length))  # so that the list is never much longer than it must be
            if self.length > self.most / 2:
                self._stop_listing(self.best)

    def _prune(self) -> None:
        """The best has risen since some were listed."""
        row, column, logit = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
        stays = (logit > self._bar().index_select(0, row)).nonzero().squeeze(1)
        self.kept, self.length = [(row[stays], column[stays], logit[stays])], len(stays)

    def _stop_listing(self, best: Tensor) -> None:
        """They are too many: from here on weights are summed, and other sweeps compute them all."""
        self._sum(best)
        self.kept, self.listing, self.summing = [tuple(field[:0] for field in self.kept[0])], False, True

    def _sum(self, best: Tensor) -> None:
        for row, _, logit in self.kept:
            self.total.index_add_(0, row, (logit - best.index_select(0, row)).exp_())
