"""In which order MaskGIT's sampler reveals tokens: two tables of priorities, lowest first.

Orders that do not look at the sampled value (all but "confidence") reproduce the model's joint distribution exactly when
one token is revealed per step; "confidence" (the MaskGIT paper's) prefers likely values and is biased by design.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """What an order may look at: some of the positions that are still masked.

    `logits`: guided logits, float32, one "... k" per index. `values`: the tokens drawn for these positions.
    `uniform`: noise of this step. `choice_temperature`: of each position's sample at this step.
    `foreseen`: how many of the logits do not depend on the values that were drawn; an order that must not look at the values
    looks at these only.
    """

    logits: list[Float[Tensor, "*b _k"]]
    values: Int[Tensor, "*b d"]
    uniform: Float[Tensor, "*b"]
    choice_temperature: Float[Tensor, "*#b"]
    foreseen: int


def gumbel(uniform: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Standard Gumbel noise from uniform noise in float32, always finite."""
    tiny = torch.finfo(torch.float32).tiny
    return -torch.log(-torch.log(uniform.clamp(tiny, 1 - 2**-24)))


def likelihood(logits: list[Float[Tensor, "*b _k"]], values: Int[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
    """Log-probability of values under these logits, in nats, summed over the d indices."""
    parts = [each.gather(-1, values[..., j : j + 1]).squeeze(-1) - each.logsumexp(-1) for j, each in enumerate(logits)]
    return torch.stack(parts).sum(0)


def _confidence(candidates: Candidates) -> Tensor:
    noise = candidates.choice_temperature * gumbel(candidates.uniform)
    return -(likelihood(candidates.logits, candidates.values) + noise)


def _entropy(candidates: Candidates) -> Tensor:
    total = torch.zeros_like(candidates.uniform)
    for logits in candidates.logits[: candidates.foreseen]:
        log_probs = logits.log_softmax(-1)
        total -= (log_probs.exp() * log_probs).sum(-1)
    return total


def _maxprob(candidates: Candidates) -> Tensor:
    total = torch.zeros_like(candidates.uniform)
    for logits in candidates.logits[: candidates.foreseen]:
        total -= logits.amax(-1) - logits.logsumexp(-1)
    return total


@lru_cache(maxsize=64)
def halton_ranks(h: int, w: int) -> Int[Tensor, "h w"]:
    """When the low-discrepancy order visits each cell of a grid (Besnier et al. 2025): a permutation of 0 .. h w - 1.

    The i-th point is (floor(Phi_2(i) h), floor(Phi_3(i) w)) for i = 1, 2, ..., cells seen before skipped, until all were.
    """
    ranks, seen, start, chunk = torch.full((h * w,), -1), 0, 1, 4 * h * w + 16
    while seen < h * w:
        points = torch.arange(start, start + chunk)
        cells = (radical_inverse(points, 2) * h).long() * w + (radical_inverse(points, 3) * w).long()
        for cell in cells.tolist():
            if ranks[cell] < 0:
                ranks[cell] = seen
                seen += 1
        start += chunk
    return ranks.view(h, w)


def radical_inverse(index: Int[Tensor, " n"], base: int) -> Float[Tensor, " n"]:
    """The digits of the index in this base, mirrored at the point."""
    result, digit = torch.zeros(index.shape, dtype=torch.float64), 1.0 / base
    while index.any():
        result += (index % base) * digit
        index, digit = index // base, digit / base
    return result


def _random(scales: tuple[tuple[int, int], ...], uniform: Tensor) -> Tensor:
    return uniform


def _halton(scales: tuple[tuple[int, int], ...], uniform: Tensor) -> Tensor:
    """Halton ranks of all positions, coarse scales first, the grids rolled by a share of their size: two of the uniforms."""
    priorities, before = [], 0
    for h, w in scales:
        y = (torch.arange(h) + (uniform[:, :1] * h).long()) % h
        x = (torch.arange(w) + (uniform[:, -1:] * w).long()) % w
        priorities.append(before + halton_ranks(h, w)[y[:, :, None], x[:, None, :]].flatten(1))
        before += h * w
    return torch.cat(priorities, dim=1).float()


# Known before anything is sampled: (grids, a uniform number per sample and position) -> priority of every position.
# The sampler asks for logits only where it reveals.
PLANNED_ORDERS: dict[str, Callable[[tuple[tuple[int, int], ...], Float[Tensor, "b t"]], Float[Tensor, "b t"]]] = {
    "random": _random,
    "halton": _halton,
}

# Decided at each step from the logits at all positions that are still masked.
ADAPTIVE_ORDERS: dict[str, Callable[[Candidates], Float[Tensor, "*b"]]] = {
    "confidence": _confidence,
    "entropy": _entropy,
    "maxprob": _maxprob,
}

# Which of the sampled tokens the corrector masks again, lowest first: (their log-probability when they were drawn, noise).
REMASKING: dict[str, Callable[[Float[Tensor, "r t"], Float[Tensor, "r t"]], Float[Tensor, "r t"]]] = {
    "confidence": lambda chances, uniform: chances,
    "random": lambda chances, uniform: uniform,
}
