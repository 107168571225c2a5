"""Tokens with some positions replaced at random: how a decoder bears the mistakes that a prior makes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from pipeline.core.rng import generator


def perturbed(tokens: Int[Tensor, "b t d"], sizes: Sequence[int], share: float, seeds: Sequence[int]) -> Int[Tensor, "b t d"]:
    """Every position is replaced, with probability `share`: all of its d indices, by uniform draws from their sizes[j] codes.

    So an equal share means equally many spoilt positions, whether a method spends one index on a position or several; of
    several scales, each scale's positions count. One seed per image. With the same seed, what a smaller share replaces a
    larger one replaces by the same, so a curve over shares is that of growing damage. The draw may give the old code again.
    ValueError for a share outside 0 … 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"perturbed: a share of {share}; give one from 0 to 1")
    limits = torch.tensor(list(sizes), dtype=torch.float64)
    rows = []
    for row, seed in zip(tokens, seeds, strict=True):
        random = generator("perturbation", seed)
        chance = torch.rand((len(row), 1), generator=random, dtype=torch.float64)
        codes = (torch.rand(row.shape, generator=random, dtype=torch.float64) * limits).floor().long()
        rows.append(torch.where((chance < share).to(row.device), codes.to(row.device), row))
    return torch.stack(rows)
