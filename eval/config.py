"""The settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from typing import Literal

from pipeline.core.errors import UserError
from pipeline.core.sampler_options import every_option

OPTIONS = make_dataclass("OPTIONS", [(name, option.kind | None, None) for name, option in every_option().items()], frozen=True)


@dataclass(frozen=True)
class Sampling(OPTIONS):
    """Options of a prior's sampler, any of `pipeline.core.sampler_options`; None leaves what the prior brings or else the
    sampler's default. One that the prior's sampler has not is an error, and so is one that does nothing beside the others."""


@dataclass(frozen=True)
class EvalConfig:
    """How many images are compared, with what, and how the priors sample.

    images: reconstructions, and samples of each prior. reference_images: training images that samples are compared with.
    labels: the classes of the samples: "balanced" (equally many of each), or as often as in the "data".
    extractor: auto (Inception-v3 where its weights are on this machine, else EfficientNet-Lite0) or one of the two names.
    weights: the file of Inception's weights, where it is neither in torch hub's cache nor in LGQ_INCEPTION_WEIGHTS.
    kid_subsets: random subsets (of 1000 images) whose mean is the kernel distance.
    maskgit, ar, var: how priors of each kind sample.
    shown_groups, shown_per_group: rows and columns of the sample sheets; shown_images: reconstructions in the report.
    """

    images: int = 2048
    reference_images: int = 4096
    labels: Literal["balanced", "data"] = "data"
    extractor: str = "auto"
    weights: str | None = None
    kid_subsets: int = 100
    batch_size: int = 128
    seed: int = 0
    maskgit: Sampling = field(default_factory=Sampling)
    ar: Sampling = field(default_factory=Sampling)
    var: Sampling = field(default_factory=Sampling)
    shown_groups: int = 16
    shown_per_group: int = 8
    shown_images: int = 32

    def __post_init__(self) -> None:
        smallest = {"images": 40, "reference_images": 40, "kid_subsets": 1, "batch_size": 1}
        smallest |= dict.fromkeys(("shown_groups", "shown_per_group", "shown_images"), 1)
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise UserError(f"config.{name}: {getattr(self, name)}; give at least {least}")
