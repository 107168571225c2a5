"""Vectors for which every code counts: the statistics of p and their gradients, a tile of vectors and codes at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage1_tokenizer.quantizers.assignment.scores import Scores
from stage1_tokenizer.quantizers.assignment.search import least_logit
from stage1_tokenizer.quantizers.assignment.tiles import in_threads, shares, tile_sizes, tiles


@dataclass(frozen=True)
class WholeRows:
    """Biases and shifts are columns of the factors of the matrix products, and work tiles are written over again and again
    (fresh ones cost page faults). Threads share the codes: nothing of the codebook's size is held twice."""

    scores: Scores
    values: Float[Tensor, "k v"]
    left: Float[Tensor, "n f+2"]  # of these vectors, and minus their shifts: with ones opposite, the product is log p

    @classmethod
    def of(
        cls, scores: Scores, values: Float[Tensor, "k v"], shift: Float[Tensor, "m 2"], rows: Int[Tensor, " n"]
    ) -> "WholeRows":
        """These rows of all."""
        return cls(scores, values, torch.cat([scores.left, -shift], 1)[rows])

    @property
    def at_once(self) -> int:
        """How many codes a tile has."""
        return self._sizes[1]

    def work(self) -> Float[Tensor, "2 s"]:
        """Memory for two tiles."""
        return self.left.new_empty(2, self._sizes[0] * self._sizes[1])

    def statistics(
        self, collected: Float[Tensor, "n r"], usage: Float[Tensor, " k"], sums: Float[Tensor, "k r"]
    ) -> tuple[Float[Tensor, "n v"], Float[Tensor, " n"]]:
        """sum_k p_ik values_k and sum_k p_ik^2; adds sum_i p_ik to the usage, and sum_i p_ik collected_i to the sums."""

        def sweep(share: slice) -> tuple[Tensor, Tensor]:
            means, squares = self.left.new_zeros(len(self.left), self.values.shape[1]), torch.zeros_like(self.left[:, 0])
            work = self.work()
            for part in tiles(share, self.at_once):
                gathered = collected.new_zeros(collected.shape[1], part.stop - part.start)
                for tile, p, _ in self._p(part, work):
                    means[tile].addmm_(p, self.values[part])
                    squares[tile] += torch.linalg.vector_norm(p, dim=1).square_()  # a third of the time of p.p
                    usage[part] += p.sum(0)
                    gathered.addmm_(collected[tile].T, p)
                sums[part] += gathered.T
            return means, squares

        means, squares = zip(*in_threads(sweep, shares(len(usage), usage.device)), strict=True)
        return torch.stack(means).sum(0), torch.stack(squares).sum(0)

    def expectation(self, b: Float[Tensor, " k"]) -> Float[Tensor, " n"]:
        """sum_k p_ik b_k."""

        def sweep(share: slice) -> Tensor:
            total, work = torch.zeros_like(self.left[:, 0]), self.work()
            for part in tiles(share, self.at_once):
                for tile, p, _ in self._p(part, work):
                    total[tile].addmv_(p, b[part])
            return total

        return torch.stack(in_threads(sweep, shares(len(b), b.device))).sum(0)

    def add_weighted(
        self,
        weigh: Callable[[Tensor, Tensor, Tensor], Tensor],
        rows: Int[Tensor, " n"],
        collected: Float[Tensor, "n r"],
        of_vectors: Float[Tensor, " m"],
        of_codes: Float[Tensor, " k"],
        sums: Float[Tensor, "k r"],
    ) -> None:
        """Adds the sums of w = weigh(p, vector, code) and of w^T collected; `rows` are these vectors' numbers among the m."""
        every, work = torch.arange(len(of_codes), device=of_codes.device), self.work()
        for part in tiles(slice(0, len(of_codes)), self.at_once):
            for tile, p, _ in self._p(part, work):
                w = weigh(p, rows[tile, None], every[part])
                of_vectors.index_add_(0, rows[tile], w.sum(1))
                of_codes[part] += w.sum(0)
                sums[part].addmm_(w.T, collected[tile])

    def add_gradients(
        self,
        part: slice,
        work: Float[Tensor, "2 s"],
        cotangents: Float[Tensor, "n v+2"],
        bias: Float[Tensor, "t v+2"],
        doubled: Float[Tensor, "n 1"] | None,
        to_left: Float[Tensor, "n f"],
    ) -> tuple[Float[Tensor, "t f"], Float[Tensor, "t v"]]:
        """The gradients of a part of the right sides and the values; adds that part's to those of the left sides.

        Those of the logits are h = p (cotangents bias^T + doubled p).
        """
        right = self.scores.right(part)
        to_right = right.new_zeros(right.shape[::-1])
        to_values = right.new_zeros(self.values.shape[1], len(right))
        for tile, p, h in self._p(part, work):
            torch.mm(cotangents[tile], bias.T, out=h)
            if doubled is not None:
                h.addcmul_(p, doubled[tile])
            h *= p
            to_left[tile].addmm_(h, right)
            to_right.addmm_(self.left[tile, :-2].T, h)  # long side last: on a CPU a quarter faster
            to_values.addmm_(cotangents[tile, :-2].T, p)
        return to_right.T, to_values.T

    @property
    def _sizes(self) -> tuple[int, int]:
        return tile_sizes(len(self.left), len(self.values), self.left.device)

    def _p(self, part: slice, work: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Tile after tile of the vectors: which, their p for these codes, and a tile to write to."""
        right, least = self.scores.right(part), least_logit(self.left.dtype)
        right = torch.cat([right, torch.ones_like(right[:, :2])], 1).T
        for tile in tiles(slice(0, len(self.left)), self._sizes[0]):
            size = (tile.stop - tile.start) * (part.stop - part.start)
            p, other = work[:, :size].view(2, -1, part.stop - part.start)
            yield tile, torch.mm(self.left[tile], right, out=p).clamp_min_(least).exp_(), other
