"""Drawing tokens from logits. Randomness belongs to a sample: each seed has a generator of its own, so that an image is the
same alone or in any batch. One uniform number per token suffices, by inverting the cumulative distribution; noise of every code
(`draw_largest`) draws the same distribution, and the same token more often where the logits change a little."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import SupportsIndex

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from pipeline.core.errors import UserError
from stage2_prior.cross_entropy import rows_at_once
from stage2_prior.logits import Logits
from stage2_prior.rows import mix

Draw = Callable[[Tensor, Tensor, Tensor, "Cut"], Tensor]  # logits, noise, temperatures, cut -> tokens
COPIES = 4  # tensors as large as the logits that drawing holds at once


def require_seed(seed: SupportsIndex) -> int:
    """A seed as a number; UserError where it is none, or none that a generator takes."""
    try:
        number = index(seed)
    except (TypeError, ValueError):
        raise UserError(f"seeds: {seed!r:.100}; give a whole number for every image") from None
    if not -(2**63) <= number < 2**64:
        raise UserError(f"seeds: {number}; give one of 64 bits, such as 0 to {2**63 - 1}")
    return number


class SampleRng:
    """One generator per seed: a sample draws the same numbers whoever is beside it."""

    def __init__(self, seeds: Sequence[SupportsIndex]) -> None:
        self.generators = [torch.Generator().manual_seed(require_seed(seed)) for seed in seeds]

    def uniform(self, rows: Sequence[int], *shape: int) -> Float[Tensor, "r *shape"]:
        """Numbers in [0, 1) from the generators of these samples."""
        out = torch.empty(len(rows), *shape)
        for target, row in zip(out.unbind(0), rows, strict=True):
            torch.rand(*shape, generator=self.generators[row], out=target)
        return out

    def keys(self, rows: Sequence[int], *shape: int) -> Int[Tensor, "r *shape"]:
        """32-bit keys of `draw_largest` from the generators of these samples."""
        out = torch.empty(len(rows), *shape, dtype=torch.int32)
        for target, row in zip(out.unbind(0), rows, strict=True):
            target.copy_(torch.randint(-(2**31), 2**31, shape, generator=self.generators[row]))
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


def draw_largest(
    logits: Float[Tensor, "n k"], keys: Int[Tensor, " n"], temperature: Float[Tensor, " n"], cut: Cut
) -> Int[Tensor, " n"]:
    """One token per row, distributed as `draw` does: the largest sum of logit / temperature and Gumbel noise.

    The noise is a function of the row's key and the code (Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030, section 2), so
    rows of one key and of logits that differ by at most e draw the same token with probability exp(-2 e) or more.
    """
    if cut.hottest == 0:
        return logits.argmax(-1)
    scores, tokens = logits / temperature.where(temperature > 0, 1)[:, None], None
    if cut.top_k is not None or cut.top_p is not None:
        scores, tokens = scores.topk(min(cut.top_k or scores.shape[-1], scores.shape[-1]), dim=-1)
        if cut.top_p is not None:
            scores = scores.masked_fill(~_head(scores.softmax(-1), cut.top_p), -torch.inf)
    codes = torch.arange(logits.shape[-1], device=logits.device, dtype=torch.int32)
    noise = gumbel(keys, codes if tokens is None else tokens)
    largest = (scores + noise.where(temperature[:, None] > 0, 0)).argmax(-1)
    return largest if tokens is None else tokens.gather(-1, largest[:, None]).squeeze(-1)


def gumbel(keys: Int[Tensor, " n"], codes: Int[Tensor, "#n k"]) -> Float[Tensor, "n k"]:
    """Standard Gumbel noise, float32, hashed from the keys and the codes: 2^23 values between -2.8 and 16.6."""
    bits = mix(mix(codes.to(torch.int32)) + keys[:, None]) & 0x7FFFFF
    return -torch.log(-torch.log1p(-(bits.float() + 0.5) * 2**-23))


def _head(probabilities: Float[Tensor, "*b k"], top_p: float) -> Bool[Tensor, "*b k"]:
    """Of probabilities in falling order the smallest set that reaches top_p, never empty: those before a token hold less."""
    return probabilities.cumsum(-1) - probabilities < top_p


def _drawn(logits: Tensor, uniform: Tensor, cut: Cut) -> Tensor:
    if cut.top_k is None and cut.top_p is None:
        return _invert(logits.softmax(-1), uniform)
    k = logits.shape[-1]
    kept, tokens = logits.topk(min(cut.top_k or k, k), dim=-1)
    probabilities = kept.softmax(-1)
    if cut.top_p is not None:
        probabilities = probabilities * _head(probabilities, cut.top_p)
    return tokens.gather(-1, _invert(probabilities, uniform)[..., None]).squeeze(-1)


def _invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    cumulative = probabilities.cumsum(-1)
    total = cumulative[..., -1]
    # below the total even after rounding, so that no token of probability zero is ever the first to exceed it
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    found = torch.searchsorted(cumulative, target[..., None].contiguous(), right=True).squeeze(-1)
    return found.clamp(max=cumulative.shape[-1] - 1)  # past the end where they are NaN: no index may be, whoever reports it


def portions(logits: Logits, places: Int[Tensor, " s"]) -> Sequence[Int[Tensor, " p"]]:
    """The places, so many at a time that their logits and what drawing makes of them take little memory."""
    return places.split(rows_at_once(sum(logits.sizes), places.device, COPIES))


def draw_indices(
    logits: Logits,
    places: Int[Tensor, " s"],
    noise: Shaped[Tensor, "s d"],
    temperature: Float[Tensor, " s"],
    cut: Cut,
    draw: Draw = draw,
) -> tuple[list[Float[Tensor, "s _k"]], Int[Tensor, "s d"]]:
    """The logits of some places and a token drawn for each, index after index, with the noise that `draw` takes."""
    seen, values = [], places.new_empty(len(places), 0)
    for j in range(len(logits.sizes)):
        seen.append(logits(j, places, values))
        values = torch.cat([values, draw(seen[-1], noise[:, j], temperature, cut)[:, None]], dim=1)
    return seen, values
