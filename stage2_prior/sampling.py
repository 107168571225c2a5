"""Samplers as pure functions of a callable that gives logits; they know tokens, not models.

Randomness belongs to a sample: each seed has a generator of its own, whose draws are indexed by step and position, so an
image is the same alone or in any batch. One uniform number per token suffices, by inverting the cumulative distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.core.errors import UserError
from stage2_prior.cross_entropy import rows_at_once
from stage2_prior.orders import ADAPTIVE_ORDERS, PLANNED_ORDERS, Candidates
from stage2_prior.schedules import GUIDANCE_SCHEDULES, MASK_SCHEDULES, reveal_counts

Progress = Callable[[int, int], None]  # (steps done, steps in all)
UNKNOWN = -1  # the value of a token that is to be sampled
COPIES = 4  # tensors as large as the logits that drawing holds at once


@dataclass(frozen=True)
class Samples:
    """Sampled tokens "b t d", and the grids after every step (UNKNOWN where still masked) if a trace was asked for."""

    tokens: Int[Tensor, "b t d"]
    trace: list[Int[Tensor, "b t d"]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """What both samplers share.

    Guided logits are unconditional + scale (conditional - unconditional): 1 conditional, 0 unconditional, each with one
    forward pass per step. `guidance_schedule`: constant, linear in the revealed share, or power_cosine (of power
    `guidance_power`) in the steps; outside `guidance_interval` = (from, to), shares of the steps, the scale is 1.
    `temperature` divides the guided logits (0: the most likely token); then `top_k` and `top_p` cut the tail.
    """

    guidance_scale: float = 1.0
    guidance_schedule: str = "constant"
    guidance_power: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        _require(self.guidance_scale >= 0, "guidance_scale", self.guidance_scale, "give 0 or more")
        _choose("guidance_schedule", self.guidance_schedule, GUIDANCE_SCHEDULES)
        _require(self.guidance_power > 0, "guidance_power", self.guidance_power, "give more than 0")
        start, end = self.guidance_interval
        _require(0 <= start <= end <= 1, "guidance_interval", self.guidance_interval, "give 0 <= from <= to <= 1")
        _require(self.temperature >= 0, "temperature", self.temperature, "give 0 or more")
        _require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "give 1 or more, or leave it out")
        _require(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "give 0 < top_p <= 1, or leave it out")

    def scale(self, done: float, revealed: float) -> float:
        """The guidance scale when these shares of the steps and of the tokens are done."""
        start, end = self.guidance_interval
        if not start <= done < end:
            return 1.0
        schedule = GUIDANCE_SCHEDULES[self.guidance_schedule]
        return schedule(self.guidance_scale, done, revealed, self.guidance_power)


@dataclass(frozen=True, kw_only=True)
class MaskGITSampling(SamplingOptions):
    """MaskGIT: `schedule` sets how many tokens each of `steps` reveals, `order` which.

    `choice_temperature` (falling linearly to 0) scales the noise on the confidence order.
    """

    steps: int = 12
    schedule: str = "arccos"
    order: str = "confidence"
    choice_temperature: float = 4.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.steps >= 1, "steps", self.steps, "give 1 or more")
        _choose("schedule", self.schedule, MASK_SCHEDULES)
        _choose("order", self.order, ADAPTIVE_ORDERS | PLANNED_ORDERS)
        _require(self.choice_temperature >= 0, "choice_temperature", self.choice_temperature, "give 0 or more")


@dataclass(frozen=True, kw_only=True)
class ARSampling(SamplingOptions):
    """Autoregressive, in raster order: one token after the other."""


@runtime_checkable
class Logits(Protocol):
    """Logits at n positions, worked out for some of them as they are asked for; `sizes` says how many each index has,
    `independent` whether they are the same whatever the indices before it."""

    @property
    def sizes(self) -> tuple[int, ...]: ...

    @property
    def independent(self) -> bool: ...

    def __call__(self, j: int, places: Int[Tensor, " s"], before: Int[Tensor, "s j"]) -> Float[Tensor, "s _k"]:
        """Of index j at some of the positions, where the indices before it have these values."""
        ...


@dataclass(frozen=True)
class TensorLogits:
    """The logits of a model that gives them all at once: a tensor "... k" per index."""

    tensors: list[Float[Tensor, "... _k"]]
    independent = True

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(tensor.shape[-1] for tensor in self.tensors)

    def __call__(self, j: int, places: Int[Tensor, " s"], before: Int[Tensor, "s j"]) -> Float[Tensor, "s _k"]:
        return self.tensors[j].flatten(0, -2)[places]


@runtime_checkable
class MaskedLogits(Protocol):
    """Logits at `positions`, row by row, for every branch in turn: the branches (True: with the label, False: without)
    follow each other. `rows` says which samples of the batch these are; the values of masked tokens mean nothing."""

    def __call__(
        self,
        tokens: Int[Tensor, "r t d"],
        masked: Bool[Tensor, "r t"],
        positions: Int[Tensor, "r m"],
        rows: Int[Tensor, " r"],
        branches: tuple[bool, ...],
    ) -> Logits: ...


@runtime_checkable
class NextLogits(Protocol):
    """Logits of the token that follows `tokens`, sample by sample, for every branch in turn.

    Called with ever longer prefixes of the same sequences, so that it may keep keys and values."""

    def __call__(self, tokens: Int[Tensor, "b i d"], branches: tuple[bool, ...]) -> Logits: ...


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


def draw(logits: Float[Tensor, "*b k"], uniform: Float[Tensor, "*b"], options: SamplingOptions) -> Int[Tensor, "*b"]:
    """One token per row: the first whose cumulative probability, after temperature, top-k and top-p, exceeds the uniform."""
    if options.temperature == 0:
        return logits.argmax(-1)
    logits = logits if options.temperature == 1 else logits / options.temperature
    if options.top_k is None and options.top_p is None:
        return _invert(logits.softmax(-1), uniform)
    k = logits.shape[-1]
    kept, tokens = logits.topk(min(options.top_k or k, k), dim=-1)
    probabilities = kept.softmax(-1)
    if options.top_p is not None:
        # a token stays while those before it hold less than top_p: the smallest set that reaches it, never empty
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities * (before < options.top_p)
    return tokens.gather(-1, _invert(probabilities, uniform)[..., None]).squeeze(-1)


def _invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    cumulative = probabilities.cumsum(-1)
    total = cumulative[..., -1]
    # below the total even after rounding, so that no token of probability zero is ever the first to exceed it
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target[..., None].contiguous(), right=True).squeeze(-1)


@dataclass(frozen=True)
class GuidedLogits:
    """Float32 logits of two branches, the conditional one's first, combined with a scale for every place; or of one branch."""

    branches: Logits
    scales: Float[Tensor, " n"] | None

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.branches.sizes

    @property
    def independent(self) -> bool:
        return self.branches.independent

    def __call__(self, j: int, places: Int[Tensor, " s"], before: Int[Tensor, "s j"]) -> Float[Tensor, "s _k"]:
        conditional = self.branches(j, places, before).float()
        if self.scales is None:
            return conditional
        unconditional = self.branches(j, places + len(self.scales), before).float()
        return torch.lerp(unconditional, conditional, self.scales[places, None])


def guide(
    logits: Callable[[tuple[bool, ...]], Logits], scales: list[float], positions: int, device: torch.device
) -> GuidedLogits:
    """Guided logits, one scale per sample of so many positions: a single branch where that is all that any sample asks for."""
    if all(scale == 1 for scale in scales) or all(scale == 0 for scale in scales):
        return GuidedLogits(logits((scales[0] == 1,)), None)
    weights = torch.tensor(scales, dtype=torch.float32, device=device).repeat_interleave(positions)
    return GuidedLogits(logits((True, False)), weights)


def portions(logits: Logits, places: Int[Tensor, " s"]) -> Sequence[Int[Tensor, " p"]]:
    """The places, so many at a time that their logits and what drawing makes of them take little memory."""
    return places.split(rows_at_once(sum(logits.sizes), places.device, COPIES))


def draw_indices(
    logits: Logits, places: Int[Tensor, " s"], uniform: Float[Tensor, "s d"], options: SamplingOptions
) -> tuple[list[Float[Tensor, "s _k"]], Int[Tensor, "s d"]]:
    """The logits of some places and a token drawn for each, index after index."""
    seen, values = [], places.new_empty(len(places), 0)
    for j in range(len(logits.sizes)):
        seen.append(logits(j, places, values))
        values = torch.cat([values, draw(seen[-1], uniform[:, j], options)[:, None]], dim=1)
    return seen, values


@torch.no_grad()
def sample_maskgit(
    logits: MaskedLogits,
    given: Int[Tensor, "b t d"],
    scales: tuple[tuple[int, int], ...],
    options: MaskGITSampling,
    seeds: Sequence[int],
    trace: bool = False,
    progress: Progress | None = None,
) -> Samples:
    """MaskGIT's parallel decoding (Chang et al. 2022, section 3.2), every sample on its own plan.

    Args: given: tokens that stay as they are, UNKNOWN in those to sample. scales: grids that the positions come from.
    A sample with n unknown tokens takes min(steps, n) steps; one without any needs no forward pass.
    """
    device, (b, t, d) = given.device, given.shape
    tokens, masked = given.clone(), (given == UNKNOWN).any(-1)
    plans = [reveal_counts(unknown, options.steps, options.schedule) for unknown in masked.sum(1).tolist()]
    steps = max((len(plan) for plan in plans), default=0)
    rng = SampleRng(seeds)
    uniform = rng.uniform(range(b), t)
    planned = PLANNED_ORDERS[options.order](scales, uniform).to(device) if options.order in PLANNED_ORDERS else None
    grids = []
    for step in range(steps):
        active = [row for row, plan in enumerate(plans) if step < len(plan)]
        rows = torch.tensor(active, device=device)
        counts = [plans[row][step] for row in active]
        left = [sum(plans[row][step:]) for row in active]
        guidance = [
            options.scale(step / len(plans[row]), 1 - rest / sum(plans[row])) for row, rest in zip(active, left, strict=True)
        ]
        now, hidden = tokens[rows], masked[rows]
        # masked positions first, in the planned order; where the order is planned, those of this step are enough
        priority = torch.zeros(hidden.shape, device=device) if planned is None else planned[rows]
        positions = priority.masked_fill(~hidden, torch.inf).argsort(dim=1, stable=True)
        positions = positions[:, : max(left if planned is None else counts)]
        noise = rng.uniform(active, t, d + 1).to(device).gather(1, positions[..., None].expand(-1, -1, d + 1))

        m, free = positions.shape[1], hidden.gather(1, positions)
        cooling = torch.tensor([1 - (step + 1) / len(plans[row]) for row in active], device=device).repeat_interleave(m)
        guided = guide(lambda branches: logits(now, hidden, positions, rows, branches), guidance, m, device)  # noqa: B023
        values, score = tokens.new_zeros(free.numel(), d), torch.full((free.numel(),), torch.inf, device=device)
        for places in portions(guided, free.flatten().nonzero()[:, 0]):
            uniforms = noise.flatten(0, 1)[places]
            seen, values[places] = draw_indices(guided, places, uniforms, options)
            if planned is None:
                noise_scale = options.choice_temperature * cooling[places]
                foreseen = d if guided.independent else 1
                score[places] = ADAPTIVE_ORDERS[options.order](
                    Candidates(seen, values[places], uniforms[:, d], noise_scale, foreseen)
                )

        rank = torch.arange(m, device=device).expand_as(free)
        if planned is None:
            rank = score.view_as(free).argsort(dim=1, stable=True).argsort(dim=1)
        reveal = free & (rank < torch.tensor(counts, device=device)[:, None])  # exact counts, whatever ties there are
        index = positions[..., None].expand(-1, -1, d)
        tokens[rows] = now.scatter(1, index, torch.where(reveal[..., None], values.view_as(index), now.gather(1, index)))
        masked[rows] = hidden.scatter(1, positions, free & ~reveal)
        if trace:
            grids.append(tokens.clone())
        if progress is not None:
            progress(step + 1, steps)
    return Samples(tokens, grids)


@torch.no_grad()
def sample_autoregressive(
    logits: NextLogits,
    given: Int[Tensor, "b t d"],
    options: ARSampling,
    seeds: Sequence[int],
    trace: bool = False,
    progress: Progress | None = None,
) -> Samples:
    """Token by token in raster order; given tokens are kept and seen by all that follow them.

    Args: given: tokens that stay as they are, UNKNOWN in those to sample.
    """
    device, (b, t, d) = given.device, given.shape
    tokens, known = given.clone(), (given != UNKNOWN).all(-1)
    noise = SampleRng(seeds).uniform(range(b), t, d).to(device)
    waiting = (~known).any(0).tolist()
    grids = []
    for i in range(t):
        if waiting[i]:
            scale = options.scale(i / t, i / t)
            guided = guide(lambda branches: logits(tokens[:, :i], branches), [scale] * b, 1, device)  # noqa: B023
            for rows in portions(guided, (~known[:, i]).nonzero()[:, 0]):
                tokens[rows, i] = draw_indices(guided, rows, noise[rows, i], options)[1]
            if trace:
                grids.append(tokens.clone())
        if progress is not None:
            progress(i + 1, t)
    return Samples(tokens, grids)


def _require(holds: bool, name: str, value: object, remedy: str) -> None:
    if not holds:
        raise UserError(f"sampling.{name}: {value}; {remedy}")


def _choose(name: str, value: str, table: Mapping[str, object]) -> None:
    _require(value in table, name, value, f"choose one of {', '.join(table)}")
