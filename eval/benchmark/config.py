"""The settings of a benchmark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """A quantizer of the benchmark: its registered name, options on top of the shipped ones, and what it is called here."""

    name: str
    label: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.name)
        if not self.label.replace("_", "").replace(".", "").isalnum():
            raise ValueError(f"label: {self.label!r}; letters, digits, _ and . only, since folders are called by it")


@dataclass(frozen=True)
class Tuning:
    """How many trainings each method's options were chosen from before the benchmark: the same for all, and stated.

    0: the options of `configs/quantizer`, tuned for none. The benchmark itself tunes nothing.
    """

    trials: int = 0


@dataclass(frozen=True)
class BenchmarkConfig:
    """Quantizers x bits x seeds x priors, and how they are measured.

    stage1, eval:      configuration files; stage2: one per prior, by the prior's name. `*_settings`: key=value on top of them.
    bits:              per position of the latent grid, the same for every method that can spend just these.
    tolerance:         bits per position by which a method may differ; those further off are reported with the bits they have.
    guidance:          scales of each prior's curve. curve_images: samples at each; images: samples at the best of them, with
                       other seeds, so that the choice does not flatter the number.
    perturbations:     shares of the indices that are replaced at random before decoding.
    assumed_seconds:   of a job, by its kind or kind/prior: what a plan assumes until it has been measured.
    """

    name: str
    stage1: str
    stage2: Mapping[str, str]
    eval: str
    quantizers: tuple[Method, ...]
    bits: tuple[float, ...]
    seeds: tuple[int, ...]
    guidance: Mapping[str, tuple[float, ...]]
    stage1_settings: tuple[str, ...] = ()
    stage2_settings: tuple[str, ...] = ()
    eval_settings: tuple[str, ...] = ()
    curve_images: int = 1024
    images: int = 2048
    perturbations: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    tuning: Tuning = field(default_factory=Tuning)
    tolerance: float = 0.1
    assumed_seconds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or self.name in (".", "..") or "/" in self.name:
            raise ValueError(f"name: {self.name!r}; give the name of a folder")
        for what in ("quantizers", "bits", "seeds"):
            if not getattr(self, what):
                raise ValueError(f"{what}: none given; give at least one")
        for what, values in (
            ("quantizers", [method.label for method in self.quantizers]),
            ("bits", list(self.bits)),
            ("seeds", list(self.seeds)),
        ):
            twice = [value for value, count in Counter(values).items() if count > 1]
            if twice:
                raise ValueError(f"{what}: {twice[0]} is there twice; give every quantizer of one name a label of its own")
        for prior in self.stage2:
            if not self.guidance.get(prior):
                raise ValueError(f"guidance: no scales for {prior}; give a list, for example guidance.{prior}=[1,2,3]")
        if not all(0 < share <= 1 for share in self.perturbations):
            raise ValueError(f"perturbations: {list(self.perturbations)}; shares lie between 0 and 1")
