"""What samplers are told and what they give: options, checked as they are made, and samples."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

from jaxtyping import Int
from torch import Tensor

from pipeline.core.config import did_you_mean, kinds_of, require_kinds
from pipeline.core.errors import UserError
from pipeline.core.sampler_options import AROptions, MaskGITOptions, NextScaleOptions, SharedOptions
from stage2_prior.drawing import Cut
from stage2_prior.orders import ADAPTIVE_ORDERS, PLANNED_ORDERS, REMASKING
from stage2_prior.schedules import GUIDANCE_SCHEDULES, MASK_SCHEDULES

# (steps done, steps in all, tokens, UNKNOWN where they are not sampled yet) -> the tokens to go on with, None to stop there.
# A step may be several: of AR in raster order it is a token of the sample that has fewest.
Progress = Callable[[int, int, Tensor], Tensor | None]
RECOMMENDED = "sampling.json"  # beside a finished prior: options that its samples are drawn with where nobody says otherwise
RASTER = "raster"  # the order in which autoregressive priors learn tokens, unless they learn any
INTERVAL = "give 0 <= from <= to <= 1"
MOST = 1e4  # of what logits are multiplied by
TEMPERATURES = f"give 0, or {1 / MOST:g} to {MOST:g}"
NUMBERS: dict[Any, Any] = {int: Integral, float: Real}  # NumPy's among them
REMEDIES: dict[Any, str] = {
    int: "give a whole number",
    float: "give a number",
    str: "give a name",
    tuple[float, float]: INTERVAL,
}  # for a value of another type
UNKNOWN = -1  # the value of a token that is to be sampled


@dataclass(frozen=True)
class Samples:
    """Sampled tokens "b t d", and the grids after every step (UNKNOWN where still masked) if a trace was asked for.

    Where `progress` stopped the sampling, the tokens that were still to come are UNKNOWN.
    """

    tokens: Int[Tensor, "b t d"]
    trace: list[Int[Tensor, "b t d"]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(SharedOptions):
    """What all samplers share.

    Guided logits are unconditional + scale (conditional - unconditional): 1 conditional, 0 unconditional, each with one
    forward pass per step. `guidance_schedule`: constant, linear in the revealed share, or power_cosine (of power
    `guidance_power`) in the steps; outside `guidance_interval` = (from, to), shares of the steps, the scale is 1. The schedules
    rise from 1; a scale below 1 is constant.
    `temperature` divides the guided logits (0: the most likely token), moving in equal steps to `final_temperature` where that
    is given (TiTok: 1.3 to 0.5; Halton-MaskGIT: 1 to 0.83); then `top_k` and `top_p` cut the tail.
    """

    def __post_init__(self) -> None:
        for name, (allowed, remedy) in _kinds(type(self)).items():
            value = getattr(self, name)
            _require(any(_is_a(value, kind) for kind in allowed), name, f"{value!r:.100}", remedy)
        _require(0 <= self.guidance_scale <= MOST, "guidance_scale", self.guidance_scale, f"give 0 or more, up to {MOST:g}")
        _choose("guidance_schedule", self.guidance_schedule, GUIDANCE_SCHEDULES)
        _require(0 < self.guidance_power < math.inf, "guidance_power", self.guidance_power, "give more than 0")
        interval = tuple(self.guidance_interval)
        _require(len(interval) == 2 and 0 <= interval[0] <= interval[1] <= 1, "guidance_interval", interval, INTERVAL)
        _require(_finite_logits(self.temperature), "temperature", self.temperature, TEMPERATURES)
        final = self.final_temperature
        _require(final is None or _finite_logits(final), "final_temperature", final, f"{TEMPERATURES}, or leave it out")
        _require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "give 1 or more, or leave it out")
        _require(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "give 0 < top_p <= 1, or leave it out")

    def scale(self, done: float, revealed: float) -> float:
        """The guidance scale when these shares of the steps and of the tokens are done."""
        start, end = self.guidance_interval
        if not start <= done < end:
            return 1.0
        schedule = GUIDANCE_SCHEDULES[self.guidance_schedule if self.guidance_scale > 1 else "constant"]
        return schedule(self.guidance_scale, done, revealed, self.guidance_power)

    def temperature_at(self, step: int, steps: int) -> float:
        """The temperature of a step, the first of which is 0."""
        final = self._last_temperature
        return self.temperature + (final - self.temperature) * min(step / max(steps - 1, 1), 1.0)

    @property
    def cut(self) -> Cut:
        """What drawing has to know besides each token's temperature."""
        final = self._last_temperature
        return Cut(min(self.temperature, final), max(self.temperature, final), self.top_k, self.top_p)

    @property
    def _last_temperature(self) -> float:
        return self.temperature if self.final_temperature is None else self.final_temperature

    def idle(self) -> dict[str, str]:
        """Options that do nothing beside the others, each with what would make them do something."""
        return {} if self.guidance_schedule == "power_cosine" else {"guidance_power": "give guidance_schedule=power_cosine"}

    def require_used(self, asked: Iterable[str]) -> None:
        """UserError that names the first option asked for, of another value than the default, that does nothing.

        Those that nobody asked for now (a prior may bring them, for an order that a command replaces) may do so.
        """
        idle, plain = self.idle(), type(self)()
        for name in asked:
            value = getattr(self, name)
            if name in idle and value != getattr(plain, name):
                raise UserError(f"sampling.{name}: {value} does nothing here; {idle[name]}, or leave it out")


def make_options(kind: type[SamplingOptions], given: Mapping[str, Any]) -> SamplingOptions:
    """Options of a kind of sampler; UserError for a name that it has not, and for values that cannot be."""
    known = [field.name for field in fields(kind)]
    for name in given:
        if name not in known:
            raise UserError(f"{name:.100}: {kind.__name__} has no such option; {did_you_mean(name[:100], known)}")
    return kind(**given)


def require_options(place: str, kind: type[SamplingOptions], given: Any) -> None:
    """UserError that names the place where this, from a file, is neither None nor options that a kind of sampler takes."""
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise UserError(f"{place}: {given!r:.100}; give names of options with their values")
    try:
        require_kinds(kind.__name__, kind, {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})
        make_options(kind, given)
    except (UserError, ValueError) as error:
        raise UserError(f"{place}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class MaskGITSampling(MaskGITOptions, SamplingOptions):
    """MaskGIT: `schedule` sets how many tokens each of `steps` reveals, `order` which.

    `choice_temperature` (falling linearly to 0) scales the noise on the confidence order.

    When all tokens are there, each of `corrector_steps` masks `corrector_share` of the sampled ones once more, chosen by
    `corrector` (REMASKING), and draws them anew: the least likely when they were drawn, or random ones. The latter, one token
    at a time, is Gibbs sampling: with a perfect model it undoes whatever drawing many at once has spoilt.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.steps >= 1, "steps", self.steps, "give 1 or more")
        _choose("schedule", self.schedule, MASK_SCHEDULES)
        _choose("order", self.order, ADAPTIVE_ORDERS | PLANNED_ORDERS)
        _require(0 <= self.choice_temperature < math.inf, "choice_temperature", self.choice_temperature, "give 0 or more")
        _require(self.corrector_steps >= 0, "corrector_steps", self.corrector_steps, "give 0 or more")
        _require(0 < self.corrector_share <= 1, "corrector_share", self.corrector_share, "give 0 < corrector_share <= 1")
        _choose("corrector", self.corrector, REMASKING)

    def idle(self) -> dict[str, str]:
        idle = super().idle()
        if self.order != "confidence":
            idle["choice_temperature"] = "give order=confidence"
        if not self.corrector_steps:
            idle |= dict.fromkeys(("corrector_share", "corrector"), "give corrector_steps")
        return idle


@dataclass(frozen=True, kw_only=True)
class ARSampling(AROptions, SamplingOptions):
    """Autoregressive: one token after the other in raster order.

    `lookahead`: tokens that a pass works on at a time: those to come are guessed, and drawn anew until nothing changes. The
    samples are those of one token at a time (but for rounding); there are fewer passes, each of which costs little more as
    long as reading the weights takes most of its time: about 16 places in all, 8 of one image, are worth it on a CPU.

    A prior that has learnt random orders to the end can do more: start with all given tokens, wherever they lie, take
    the others in any of PLANNED_ORDERS, and draw several at once, in `steps` whose counts follow `schedule` (MASK_SCHEDULES).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.lookahead >= 1, "lookahead", self.lookahead, "give 1 or more")
        _require(self.steps is None or self.steps >= 1, "steps", self.steps, "give 1 or more, or leave it out: one per token")
        _choose("order", self.order, {RASTER: None} | PLANNED_ORDERS)
        _choose("schedule", self.schedule, MASK_SCHEDULES)

    def idle(self) -> dict[str, str]:
        return super().idle() | ({"schedule": "give steps"} if self.steps is None else {})


@dataclass(frozen=True, kw_only=True)
class NextScaleSampling(NextScaleOptions, SamplingOptions):
    """Next-scale prediction: one step per scale, coarse to fine.

    The linear guidance schedule, the default as in VAR, is linear in the scales: 1 at the coarsest, `guidance_scale` at the
    finest. VAR's own numbers are 2.5 (1.5 in its convention), top_k 900 of 4096 codes, top_p 0.96.
    """


def _finite_logits(temperature: float) -> bool:
    """Whether logits divided by it stay far from the ends of float32, where a softmax gives no numbers; 0 divides nothing."""
    return temperature == 0 or 1 / MOST <= temperature <= MOST


def _require(holds: bool, name: str, value: object, remedy: str) -> None:
    if not holds:
        raise UserError(f"sampling.{name}: {value}; {remedy}")


def _choose(name: str, value: str, table: Mapping[str, object]) -> None:
    _require(value in table, name, value[:100], did_you_mean(value[:100], table))


@lru_cache
def _kinds(options: type[SamplingOptions]) -> dict[str, tuple[tuple[Any, ...], str]]:
    """The types that each option's values may have, and the remedy for others."""
    found: dict[str, tuple[tuple[Any, ...], str]] = {}
    for name, hint in typing.get_type_hints(options).items():
        own, *none = kinds_of(hint)
        found[name] = ((own, *none), REMEDIES[own] + (", or leave it out" if none else ""))
    return found


def _is_a(value: object, kind: Any) -> bool:
    """Whether a value is of a type, NumPy's numbers among those of Python; how many numbers a tuple holds is not looked at."""
    if typing.get_origin(kind) is tuple:
        return isinstance(value, (tuple, list)) and all(_is_a(each, float) for each in value)
    return isinstance(value, NUMBERS.get(kind, kind)) and not isinstance(value, bool)
