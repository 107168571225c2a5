"""How the tokens of a stated number of images use the codes: the one place that measures usage, perplexity and rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class CodeUsage:
    """How `n` tokens spread over `size` codes; the joint one counts tuples of indices and has one per index beside it.

    `counts` are those of the codes that occur, most frequent first. A joint alphabet that is large against `n` cannot show
    its entropy: no sample of n tokens has more than log2(n) bits.
    """

    size: int
    n: int
    counts: Int[Tensor, "active"]
    per_index: tuple[CodeUsage, ...] = ()

    @property
    def active(self) -> int:
        """Codes that occur at least once."""
        return len(self.counts)

    @property
    def share(self) -> float:
        """Active codes among all codes, 0 … 1."""
        return self.active / self.size

    @property
    def entropy_bits(self) -> float:
        """Empirical entropy in bits per token."""
        p = self.counts.double() / self.n
        return max(0.0, -(p * p.log2()).sum().item())

    @property
    def effective_bits(self) -> float:
        """Entropy in bits per token plus Miller's correction for small samples (1955), at most log2(size)."""
        return min(self.entropy_bits + (self.active - 1) / (2 * self.n * math.log(2)), math.log2(self.size))

    @property
    def perplexity(self) -> float:
        """2^entropy: the number of equally frequent codes that would carry as much."""
        return 2**self.entropy_bits


def code_usage(indices: Int[Tensor, "*n d"], sizes: Sequence[int]) -> CodeUsage:
    """The joint usage of int64 indices whose column j counts below sizes[j], and that of every column in `per_index`."""
    indices = indices.reshape(-1, indices.shape[-1])
    n, d = indices.shape
    if d != len(sizes) or n == 0:
        raise ValueError(f"code_usage: {n} tokens of {d} indices for sizes {tuple(sizes)}; wanted some, of {len(sizes)} each")
    lowest, highest = indices.amin(0).tolist(), indices.amax(0).tolist()
    if min(lowest) < 0 or any(top >= size for top, size in zip(highest, sizes, strict=True)):
        raise ValueError(f"code_usage: indices between {lowest} and {highest} do not fit sizes {tuple(sizes)}")
    columns = tuple(
        CodeUsage(size, n, _frequencies(torch.bincount(column, minlength=size)))
        for column, size in zip(indices.unbind(1), sizes, strict=True)
    )
    counts = columns[0].counts if d == 1 else _frequencies(_tuple_counts(indices, sizes))
    return CodeUsage(math.prod(sizes), n, counts, columns)


def _tuple_counts(indices: Tensor, sizes: Sequence[int]) -> Tensor:
    """Counts of the rows that occur; rows become one number each while that number fits 63 bits."""
    if math.prod(sizes) >= 2**63:
        return torch.unique(indices, dim=0, return_counts=True)[1]
    numbers = torch.zeros_like(indices[:, 0])
    for column, size in zip(indices.unbind(1), sizes, strict=True):
        numbers = numbers * size + column
    return torch.unique(numbers, return_counts=True)[1]


def _frequencies(counts: Tensor) -> Tensor:
    return counts[counts > 0].sort(descending=True).values.cpu()
