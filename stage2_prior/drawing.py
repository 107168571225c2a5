"""Drawing tokens from logits. Randomness belongs to a sample: each seed has a generator of its own, so that an image is the
same alone or in any batch. One uniform number per token suffices, by inverting the cumulative distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prior.cross_entropy import rows_at_once
from stage2_prior.logits import Logits

COPIES = 4  # tensors as large as the logits that drawing holds at once


class SampleRng:
    """One generator per seed: a sample draws the same numbers whoever is beside it."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def uniform(self, rows: Sequence[int], *shape: int) -> Float[Tensor, "r *shape"]:
        """Numbers in [0, 1) from the generators of these samples."""
        out = torch.empty(len(rows), *shape)
        for target, row in zip(out.unbind(0), rows, strict=True):
            torch.rand(*shape, generator=self.generators[row], out=target)
        return out


@dataclass(frozen=True)
class Cut:
    """What is left of a distribution: temperatures between `coldest` and `hottest` (0: the likeliest token), then its head."""

    coldest: float
    hottest: float
    top_k: int | None
    top_p: float | None


def draw(
    logits: Float[Tensor, "*b k"], uniform: Float[Tensor, "*b"], temperature: Float[Tensor, "*b"], cut: Cut
) -> Int[Tensor, "*b"]:
    """One token per row: the first whose cumulative probability, after temperature, top-k and top-p, exceeds the uniform."""
    if cut.hottest == 0:
        return logits.argmax(-1)
    if cut.coldest == 0:
        warm = _drawn(logits / temperature.where(temperature > 0, 1)[..., None], uniform, cut)
        return warm.where(temperature > 0, logits.argmax(-1))
    return _drawn(logits if cut.coldest == cut.hottest == 1 else logits / temperature[..., None], uniform, cut)


def _drawn(logits: Tensor, uniform: Tensor, cut: Cut) -> Tensor:
    if cut.top_k is None and cut.top_p is None:
        return _invert(logits.softmax(-1), uniform)
    k = logits.shape[-1]
    kept, tokens = logits.topk(min(cut.top_k or k, k), dim=-1)
    probabilities = kept.softmax(-1)
    if cut.top_p is not None:
        # a token stays while those before it hold less than top_p: the smallest set that reaches it, never empty
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities * (before < cut.top_p)
    return tokens.gather(-1, _invert(probabilities, uniform)[..., None]).squeeze(-1)


def _invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    cumulative = probabilities.cumsum(-1)
    total = cumulative[..., -1]
    # below the total even after rounding, so that no token of probability zero is ever the first to exceed it
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target[..., None].contiguous(), right=True).squeeze(-1)


def portions(logits: Logits, places: Int[Tensor, " s"]) -> Sequence[Int[Tensor, " p"]]:
    """The places, so many at a time that their logits and what drawing makes of them take little memory."""
    return places.split(rows_at_once(sum(logits.sizes), places.device, COPIES))


def draw_indices(
    logits: Logits,
    places: Int[Tensor, " s"],
    uniform: Float[Tensor, "s d"],
    temperature: Float[Tensor, " s"],
    cut: Cut,
) -> tuple[list[Float[Tensor, "s _k"]], Int[Tensor, "s d"]]:
    """The logits of some places and a token drawn for each, index after index."""
    seen, values = [], places.new_empty(len(places), 0)
    for j in range(len(logits.sizes)):
        seen.append(logits(j, places, values))
        values = torch.cat([values, draw(seen[-1], uniform[:, j], temperature, cut)[:, None]], dim=1)
    return seen, values
