"""The options of all samplers as plain fields: a new one here is an option of every command and a setting of every evaluation.

What they do and which values they may have stands with the samplers (stage2_prior/sampling.py). Nothing here is heavy, so that
`--help` answers at once, and evaluations, which know no priors, have the names too.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, field, fields
from typing import Any

from pipeline.core.config import kinds_of


def option(default: Any, metavar: str | tuple[str, ...], text: str) -> Any:
    """A field with what `--help` says of it."""
    return field(default=default, metadata={"metavar": metavar, "help": text})


@dataclass(frozen=True, kw_only=True)
class SharedOptions:
    """What all samplers share."""

    guidance_scale: float = option(1.0, "S", "guidance scale: 1 none, 0 unconditional")
    guidance_schedule: str = option("constant", "NAME", "how it rises from 1: constant, linear, power_cosine")
    guidance_power: float = option(1.0, "P", "of power_cosine: above 1 it rises later")
    guidance_interval: tuple[float, float] = option(
        (0.0, 1.0), ("FROM", "TO"), "shares of the steps between which there is guidance"
    )
    temperature: float = option(1.0, "T", "of the softmax: 1 as learned, 0 the likeliest tokens")
    final_temperature: float | None = option(None, "T", "where the temperature moves to, in equal steps")
    top_k: int | None = option(None, "K", "draw from the K likeliest tokens only")
    top_p: float | None = option(None, "P", "draw from the likeliest tokens that sum up to P")


@dataclass(frozen=True, kw_only=True)
class MaskGITOptions(SharedOptions):
    """Those of MaskGIT."""

    steps: int = option(12, "N", "steps, each of which reveals some tokens")
    schedule: str = option("arccos", "NAME", "how many tokens each step reveals: arccos, cosine, linear, …")
    order: str = option("confidence", "NAME", "which: confidence, halton, random, entropy, …")
    choice_temperature: float = option(4.5, "T", "noise on the order confidence, which falls to 0")
    corrector_steps: int = option(0, "N", "steps after the last, each of which draws some tokens anew")
    corrector_share: float = option(0.1, "SHARE", "of the tokens, in each of them")
    corrector: str = option("confidence", "NAME", "which of them: confidence (the least likely), random")


@dataclass(frozen=True, kw_only=True)
class AROptions(SharedOptions):
    """Those of autoregressive priors."""

    steps: int | None = option(None, "N", "steps of a prior that knows random orders (default: one per token)")
    order: str = option("raster", "NAME", "of such a prior: raster, halton, random")
    schedule: str = option("cosine", "NAME", "of its steps")
    lookahead: int = option(1, "N", "tokens that a pass works on, of a prior in raster order: fewer passes, the same samples")


@dataclass(frozen=True, kw_only=True)
class NextScaleOptions(SharedOptions):
    """Those of next-scale prediction."""

    guidance_schedule: str = "linear"


KINDS: dict[str, type[SharedOptions]] = {"maskgit": MaskGITOptions, "ar": AROptions, "var": NextScaleOptions}


@dataclass(frozen=True)
class Option:
    """An option of some sampler: `kind` is the type of its values, None left aside."""

    kind: Any
    metavar: str | tuple[str, ...]
    help: str


def every_option() -> dict[str, Option]:
    """The options of all kinds of priors by name; the help of one that not all have says which have it."""
    found: dict[str, Option] = {}
    shared = {each.name for each in fields(SharedOptions)}
    for prior, kind in KINDS.items():
        hints = typing.get_type_hints(kind)
        for each in fields(kind):
            if each.name in shared and each.name in found:
                continue
            text = each.metadata["help"] if each.name in shared else f"{prior}: {each.metadata['help']}"
            if each.name in found:
                text = f"{found[each.name].help}; {text}"
            found[each.name] = Option(kinds_of(hints[each.name])[0], each.metadata["metavar"], text)
    return found
