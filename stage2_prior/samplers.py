"""Samplers as pure functions of a callable that gives logits; they know tokens, not models.

A sample's random numbers are indexed by step and position and come from its own seed, so it is the same in any batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from pipeline.core.errors import UserError
from stage2_prior.drawing import Cut, Draw, SampleRng, draw, draw_indices, draw_largest, portions
from stage2_prior.logits import CausalLogits, Logits, MaskedLogits, NextLogits, OrderedLogits, guide
from stage2_prior.orders import ADAPTIVE_ORDERS, PLANNED_ORDERS, REMASKING, Candidates, likelihood
from stage2_prior.rows import first_marked
from stage2_prior.sampling import (
    RASTER,
    UNKNOWN,
    ARSampling,
    MaskGITSampling,
    NextScaleSampling,
    Progress,
    Samples,
)
from stage2_prior.schedules import reveal_counts


class _Run:
    """What every sampler does the same way: it draws, tells of every step, and gives samples that came from numbers."""

    def __init__(self, device: torch.device, trace: bool, progress: Progress | None) -> None:
        self.trace, self.progress, self.stopped = trace, progress, False
        self.grids: list[Tensor] = []
        self.finite = torch.ones((), dtype=torch.bool, device=device)  # read once, in the end: a GPU need not wait for it

    def draw(
        self,
        logits: Logits,
        places: Int[Tensor, " s"],
        noise: Shaped[Tensor, "s d"],
        temperature: Float[Tensor, " s"],
        cut: Cut,
        way: Draw = draw_largest,
    ) -> tuple[list[Float[Tensor, "s _k"]], Int[Tensor, "s d"]]:
        """See `draw_indices`."""
        seen, values = draw_indices(logits, places, noise, temperature, cut, way)
        for each in seen:
            self.finite &= each.amax(-1).isfinite().all()  # the largest is, unless one is NaN or inf, or all are -inf
        return seen, values

    def step(self, done: int, steps: int, shown: Int[Tensor, "b t d"]) -> Int[Tensor, "b t d"]:
        """The tokens to go on with; where `progress` wants no more, `stopped` says so."""
        if self.trace:
            self.grids.append(shown.clone())
        if self.progress is None:
            return shown
        told = self.progress(done, steps, shown.clone())
        self.stopped = told is None
        return shown if told is None else told.clone()

    def samples(self, tokens: Int[Tensor, "b t d"]) -> Samples:
        """Raises UserError where some of them were drawn from logits that are no numbers."""
        if not self.finite:
            raise UserError("sample: the prior's logits are not finite; sample in float32, or train it again")
        return Samples(tokens, self.grids)


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
    run = _Run(device, trace, progress)
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
            found, values[places] = run.draw(guided, places, noise[places, :d], heat[places], options.cut, draw)
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
        tokens = run.step(step + 1, steps, tokens.masked_fill(masked[..., None], UNKNOWN))
        if run.stopped:
            break
    return run.samples(tokens)


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
    logits: CausalLogits,
    given: Int[Tensor, "b t d"],
    options: ARSampling,
    seeds: Sequence[int],
    trace: bool = False,
    progress: Progress | None = None,
) -> Samples:
    """In raster order, each token from all before it; given tokens are kept and seen by all that follow them.

    Predictive sampling (Wiggers & Hoogeboom 2020, arXiv 2002.09928, algorithm 1): a token is a function of those before it and
    of its own noise, which is fixed from the start. A pass works out `lookahead` tokens of each sample from guesses of those
    before them. The first is right, and every other whose predecessors were guessed right; the rest are the next guesses. So
    the samples do not depend on `lookahead`, and every pass makes at least one token of each sample final.

    Args: given: tokens that stay as they are, UNKNOWN in those to sample.
    """
    device, (b, t, d) = given.device, given.shape
    tokens, unknown = given.clone(), (given == UNKNOWN).any(-1)
    guesses = given.masked_fill(unknown[..., None], 0)  # as good as any, as trials have shown
    keys = SampleRng(seeds).keys(range(b), t, d).to(device)
    numbers = torch.arange(t, device=device)
    final = ~unknown
    start, run = first_marked(~final), _Run(device, trace, progress)
    while min(start, default=t) < t:
        m = min(options.lookahead, t - min(start))
        at = torch.tensor(start, device=device)[:, None] + torch.arange(m, device=device)
        shares = [min(first + j, t - 1) for first in start for j in range(m)]
        scales = [options.scale(i / t, i / t) for i in shares]
        heat = torch.tensor([options.temperature_at(i, t) for i in shares], device=device)
        guided = guide(lambda branches: logits(guesses, start, m, branches), scales, 1, device)  # noqa: B023
        open_places = (at < t) & unknown.gather(1, at.clamp(max=t - 1))
        drawn = guesses.clone()
        for places in portions(guided, open_places.flatten().nonzero()[:, 0]):
            row, place = places // m, at.flatten()[places]
            drawn[row, place] = run.draw(guided, places, keys[row, place], heat[places], options.cut)[1]
        # right up to the first token that was guessed wrong: it was drawn from the right ones before it, those after were not
        wrong = (drawn != guesses).any(-1) & (numbers >= at[:, :1])
        ends = torch.minimum(torch.tensor(first_marked(wrong), device=device)[:, None] + 1, at[:, -1:] + 1)
        final = ~unknown | (numbers < ends)
        start = first_marked(~final)
        tokens = run.step(min(start), t, drawn.masked_fill(~final[..., None], UNKNOWN))
        if run.stopped:
            break
        guesses = tokens.where(tokens != UNKNOWN, drawn)
    return run.samples(tokens)


@torch.no_grad()
def sample_next_scale(
    logits: NextLogits,
    given: Int[Tensor, "b t d"],
    scales: tuple[tuple[int, int], ...],
    options: NextScaleSampling,
    seeds: Sequence[int],
    trace: bool = False,
    progress: Progress | None = None,
) -> Samples:
    """Scale by scale, all tokens of one at once (VAR, Tian et al. 2024); given tokens are kept and seen by all finer scales.

    Args: logits: of all tokens of the scale that follows, row-major. given: tokens that stay as they are, UNKNOWN in those to
    sample. scales: grids that the positions come from.
    """
    device, (b, t, d) = given.device, given.shape
    tokens, known = given.clone(), (given != UNKNOWN).all(-1)
    keys = SampleRng(seeds).keys(range(b), t, d).to(device)
    run, start, steps = _Run(device, trace, progress), 0, len(scales) if b else 0
    for step, (h, w) in enumerate(scales[:steps]):
        places = (~known[:, start : start + h * w]).flatten().nonzero()[:, 0]
        if len(places):
            scale = options.scale(step / steps, step / max(steps - 1, 1))
            heat = torch.full((b * h * w,), options.temperature_at(step, steps), device=device)
            guided = guide(lambda branches: logits(tokens[:, :start], branches), [scale] * b, h * w, device)  # noqa: B023
            for some in portions(guided, places):
                row, at = some // (h * w), start + some % (h * w)
                tokens[row, at] = run.draw(guided, some, keys[row, at], heat[some], options.cut)[1]
        start += h * w
        tokens = run.step(step + 1, steps, tokens)
        if run.stopped:
            break
    return run.samples(tokens)


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
    keys, uniform = rng.keys(range(b), t, d).to(device), rng.uniform(range(b), t)
    priority = torch.arange(t).expand(b, -1) if options.order == RASTER else PLANNED_ORDERS[options.order](scales, uniform)
    order = priority.to(device).float().masked_fill(~unknown, -1.0).argsort(dim=1, stable=True)
    hidden = unknown.sum(1).tolist()
    plans = [reveal_counts(n, options.steps or t, options.schedule) for n in hidden]
    known, steps = [t - n for n in hidden], max(map(len, plans), default=0)
    run = _Run(device, trace, progress)
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
            tokens[row, at] = run.draw(guided, some, keys[row, at], heats[row], options.cut)[1]
        known = [start + count for start, count in zip(known, counts, strict=True)]
        tokens = run.step(step + 1, steps, tokens)
        if run.stopped:
            break
    return run.samples(tokens)
