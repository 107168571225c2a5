"""Samplers as pure functions of a callable that gives logits; they know tokens, not models.

A sample's random numbers are indexed by step and position and come from its own seed, so it is the same in any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from pipeline.core.errors import UserError
from stage2_prior.drawing import Cut, SampleRng, draw_indices, portions
from stage2_prior.logits import MaskedLogits, NextLogits, OrderedLogits, guide
from stage2_prior.orders import ADAPTIVE_ORDERS, PLANNED_ORDERS, REMASKING, Candidates, likelihood
from stage2_prior.schedules import GUIDANCE_SCHEDULES, MASK_SCHEDULES, reveal_counts

Progress = Callable[[int, int], None]  # (steps done, steps in all)
RASTER = "raster"  # the order in which autoregressive priors learn tokens, unless they learn any
UNKNOWN = -1  # the value of a token that is to be sampled


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
    `temperature` divides the guided logits (0: the most likely token), moving in equal steps to `final_temperature` where that
    is given (TiTok: 1.3 to 0.5; Halton-MaskGIT: 1 to 0.83); then `top_k` and `top_p` cut the tail.
    """

    guidance_scale: float = 1.0
    guidance_schedule: str = "constant"
    guidance_power: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    temperature: float = 1.0
    final_temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        _require(self.guidance_scale >= 0, "guidance_scale", self.guidance_scale, "give 0 or more")
        _choose("guidance_schedule", self.guidance_schedule, GUIDANCE_SCHEDULES)
        _require(self.guidance_power > 0, "guidance_power", self.guidance_power, "give more than 0")
        start, end = self.guidance_interval
        _require(0 <= start <= end <= 1, "guidance_interval", self.guidance_interval, "give 0 <= from <= to <= 1")
        _require(self.temperature >= 0, "temperature", self.temperature, "give 0 or more")
        final = self.final_temperature
        _require(final is None or final >= 0, "final_temperature", final, "give 0 or more, or leave it out")
        _require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "give 1 or more, or leave it out")
        _require(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "give 0 < top_p <= 1, or leave it out")

    def scale(self, done: float, revealed: float) -> float:
        """The guidance scale when these shares of the steps and of the tokens are done."""
        start, end = self.guidance_interval
        if not start <= done < end:
            return 1.0
        schedule = GUIDANCE_SCHEDULES[self.guidance_schedule]
        return schedule(self.guidance_scale, done, revealed, self.guidance_power)

    def temperature_at(self, step: int, steps: int) -> float:
        """The temperature of a step, the first of which is 0."""
        final = self.temperature if self.final_temperature is None else self.final_temperature
        return self.temperature + (final - self.temperature) * min(step / max(steps - 1, 1), 1.0)

    @property
    def cut(self) -> Cut:
        """What drawing has to know besides each token's temperature."""
        final = self.temperature if self.final_temperature is None else self.final_temperature
        return Cut(min(self.temperature, final), max(self.temperature, final), self.top_k, self.top_p)


@dataclass(frozen=True, kw_only=True)
class MaskGITSampling(SamplingOptions):
    """MaskGIT: `schedule` sets how many tokens each of `steps` reveals, `order` which.

    `choice_temperature` (falling linearly to 0) scales the noise on the confidence order.

    When all tokens are there, each of `corrector_steps` masks `corrector_share` of the sampled ones once more, chosen by
    `corrector` (REMASKING), and draws them anew: the least likely when they were drawn, or random ones. The latter, one token
    at a time, is Gibbs sampling: with a perfect model it undoes whatever drawing many at once has spoilt.
    """

    steps: int = 12
    schedule: str = "arccos"
    order: str = "confidence"
    choice_temperature: float = 4.5
    corrector_steps: int = 0
    corrector_share: float = 0.1
    corrector: str = "confidence"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.steps >= 1, "steps", self.steps, "give 1 or more")
        _choose("schedule", self.schedule, MASK_SCHEDULES)
        _choose("order", self.order, ADAPTIVE_ORDERS | PLANNED_ORDERS)
        _require(self.choice_temperature >= 0, "choice_temperature", self.choice_temperature, "give 0 or more")
        _require(self.corrector_steps >= 0, "corrector_steps", self.corrector_steps, "give 0 or more")
        _require(0 < self.corrector_share <= 1, "corrector_share", self.corrector_share, "give 0 < corrector_share <= 1")
        _choose("corrector", self.corrector, REMASKING)


@dataclass(frozen=True, kw_only=True)
class ARSampling(SamplingOptions):
    """Autoregressive: one token after the other in raster order.

    A prior that has learnt random orders to the end can do more: start with all given tokens, wherever they lie, take
    the others in any of PLANNED_ORDERS, and draw several at once, in `steps` whose counts follow `schedule` (MASK_SCHEDULES).
    """

    steps: int | None = None
    order: str = RASTER
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.steps is None or self.steps >= 1, "steps", self.steps, "give 1 or more, or leave it out: one per token")
        _choose("order", self.order, {RASTER: None} | PLANNED_ORDERS)
        _choose("schedule", self.schedule, MASK_SCHEDULES)


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
    A sample with n unknown tokens takes min(steps, n) steps, then the corrector's; one without any needs no forward pass.
    """
    device, (b, t, d) = given.device, given.shape
    tokens, masked = given.clone(), (given == UNKNOWN).any(-1)
    sampled, chances = masked.clone(), torch.full((b, t), torch.inf, device=device)
    plans = [_plan(unknown, options) for unknown in masked.sum(1).tolist()]
    steps = max(map(len, plans), default=0)
    rng = SampleRng(seeds)
    uniform = rng.uniform(range(b), t)
    planned = PLANNED_ORDERS[options.order](scales, uniform).to(device) if options.order in PLANNED_ORDERS else None
    grids = []
    for step in range(steps):
        active = [row for row, plan in enumerate(plans) if step < len(plan)]
        now = [plans[row][step] for row in active]
        rows, counts = torch.tensor(active, device=device), torch.tensor([stage.reveal for stage in now], device=device)
        again = [row for row, stage in zip(active, now, strict=True) if stage.remask]
        if again:
            few = torch.tensor([plans[row][step].remask for row in again], device=device)
            key = REMASKING[options.corrector](chances[again], rng.uniform(again, t).to(device))
            rank = key.masked_fill(~sampled[again], torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
            masked[again] = rank < few[:, None]
        seen, hidden = tokens[rows], masked[rows]
        # masked positions first, in the planned order; where the order is planned, those of this step are enough
        priority = torch.zeros(hidden.shape, device=device) if planned is None else planned[rows]
        positions = priority.masked_fill(~hidden, torch.inf).argsort(dim=1, stable=True)
        m = max(stage.hidden if planned is None else stage.reveal for stage in now)
        positions = positions[:, :m]
        noise = rng.uniform(active, t, d + 1).to(device).gather(1, positions[..., None].expand(-1, -1, d + 1)).flatten(0, 1)
        heat, cooling = (
            torch.tensor(values, device=device).repeat_interleave(m)
            for values in ([stage.temperature for stage in now], [stage.cooling for stage in now])
        )

        guidance = [stage.guidance for stage in now]
        guided = guide(lambda branches: logits(seen, hidden, positions, rows, branches), guidance, m, device)  # noqa: B023
        free = hidden.gather(1, positions)
        values, score, chance = tokens.new_zeros(len(noise), d), *torch.full((2, len(noise)), torch.inf, device=device)
        for places in portions(guided, free.flatten().nonzero()[:, 0]):
            found, values[places] = draw_indices(guided, places, noise[places, :d], heat[places], options.cut)
            if planned is None:
                foreseen = d if guided.independent else 1
                candidates = Candidates(found, values[places], noise[places, d], cooling[places], foreseen)
                score[places] = ADAPTIVE_ORDERS[options.order](candidates)
            if options.corrector_steps:
                chance[places] = likelihood(found, values[places])

        rank = torch.arange(m, device=device).expand_as(free)
        if planned is None:
            rank = score.view_as(free).argsort(dim=1, stable=True).argsort(dim=1)
        reveal = free & (rank < counts[:, None])  # exact counts, whatever ties there are
        index = positions[..., None].expand(-1, -1, d)
        tokens[rows] = seen.scatter(1, index, torch.where(reveal[..., None], values.view_as(index), seen.gather(1, index)))
        masked[rows] = hidden.scatter(1, positions, free & ~reveal)
        old = chances[rows]
        chances[rows] = old.scatter(1, positions, torch.where(reveal, chance.view_as(free), old.gather(1, positions)))
        if trace:
            grids.append(tokens.masked_fill(masked[..., None], UNKNOWN))
        if progress is not None:
            progress(step + 1, steps)
    return Samples(tokens, grids)


@dataclass(frozen=True)
class _Stage:
    """One step of one sample: how many tokens are masked again before it, hidden in it, revealed by it; its strengths."""

    remask: int
    hidden: int
    reveal: int
    guidance: float
    temperature: float
    cooling: float  # of the confidence order's noise


def _plan(unknown: int, options: MaskGITSampling) -> list[_Stage]:
    counts = reveal_counts(unknown, options.steps, options.schedule)
    steps, stages, hidden = len(counts), [], unknown
    for step, count in enumerate(counts):
        guidance = options.scale(step / steps, 1 - hidden / unknown)
        cooling = options.choice_temperature * (1 - (step + 1) / steps)
        stages.append(_Stage(0, hidden, count, guidance, options.temperature_at(step, steps), cooling))
        hidden -= count
    if unknown and options.corrector_steps:
        again = max(1, round(options.corrector_share * unknown))
        guidance = options.scale((steps - 1) / steps, 1 - again / unknown)
        stages += options.corrector_steps * [_Stage(again, again, again, guidance, options.temperature_at(steps, steps), 0.0)]
    return stages


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
            scale, heat = options.scale(i / t, i / t), torch.full((b,), options.temperature_at(i, t), device=device)
            guided = guide(lambda branches: logits(tokens[:, :i], branches), [scale] * b, 1, device)  # noqa: B023
            for rows in portions(guided, (~known[:, i]).nonzero()[:, 0]):
                tokens[rows, i] = draw_indices(guided, rows, noise[rows, i], heat[rows], options.cut)[1]
            if trace:
                grids.append(tokens.clone())
        if progress is not None:
            progress(i + 1, t)
    return Samples(tokens, grids)


@torch.no_grad()
def sample_in_order(
    logits: OrderedLogits,
    given: Int[Tensor, "b t d"],
    scales: tuple[tuple[int, int], ...],
    options: ARSampling,
    seeds: Sequence[int],
    trace: bool = False,
    progress: Progress | None = None,
) -> Samples:
    """Given tokens first, then the others in an order of each sample's own, some at a time, drawn independently of each other
    (RandAR, Pang et al. 2024, section 3.3): one at a time it is ancestral sampling, and exact.

    Args: given: tokens that stay as they are, UNKNOWN in those to sample. scales: grids that the positions come from.
    A sample with n unknown tokens takes min(steps, n) steps.
    """
    device, (b, t, d) = given.device, given.shape
    tokens, unknown = given.clone(), (given == UNKNOWN).any(-1)
    rng = SampleRng(seeds)
    noise, uniform = rng.uniform(range(b), t, d).to(device), rng.uniform(range(b), t)
    priority = torch.arange(t).expand(b, -1) if options.order == RASTER else PLANNED_ORDERS[options.order](scales, uniform)
    order = priority.to(device).float().masked_fill(~unknown, -1.0).argsort(dim=1, stable=True)
    hidden = unknown.sum(1).tolist()
    plans = [reveal_counts(n, options.steps or t, options.schedule) for n in hidden]
    known, steps = [t - n for n in hidden], max(map(len, plans), default=0)
    grids = []
    for step in range(steps):
        active = [row for row, plan in enumerate(plans) if step < len(plan)]
        counts = [plan[step] if step < len(plan) else 0 for plan in plans]
        m = max(counts)
        scale, heat = [0.0] * b, [0.0] * b
        for row in active:
            done, revealed = step / len(plans[row]), 1 - (t - known[row]) / hidden[row]
            scale[row], heat[row] = options.scale(done, revealed), options.temperature_at(step, len(plans[row]))
        strengths = [each if count else scale[active[0]] for each, count in zip(scale, counts, strict=True)]
        guided = guide(lambda branches: logits(tokens, order, known, m, branches), strengths, m, device)  # noqa: B023

        places = torch.tensor([row * m + j for row, count in enumerate(counts) for j in range(count)], device=device)
        starts = torch.tensor(known, device=device)
        heats = torch.tensor(heat, device=device)
        for some in portions(guided, places):
            row, j = some // m, some % m
            at = order[row, starts[row] + j]
            tokens[row, at] = draw_indices(guided, some, noise[row, at], heats[row], options.cut)[1]
        known = [start + count for start, count in zip(known, counts, strict=True)]
        if trace:
            grids.append(tokens.clone())
        if progress is not None:
            progress(step + 1, steps)
    return Samples(tokens, grids)


def _require(holds: bool, name: str, value: object, remedy: str) -> None:
    if not holds:
        raise UserError(f"sampling.{name}: {value}; {remedy}")


def _choose(name: str, value: str, table: Mapping[str, object]) -> None:
    _require(value in table, name, value, f"choose one of {', '.join(table)}")
