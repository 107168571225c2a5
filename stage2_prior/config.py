"""The settings of a prior's training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.config import require_between
from pipeline.core.launch import Precision, Tracker
from pipeline.core.schedule import require_adamw


@dataclass(frozen=True)
class Optim:
    """AdamW (decay on matrices only) with a linear warm-up and a cosine to `final_lr` x `lr`; `warmup` in images.

    max_bad_steps: steps in a row whose loss or gradient is not finite, all left out, after which the training stops.
    """

    lr: float = 4e-4
    warmup: int = 1_000_000
    final_lr: float = 0.025
    betas: tuple[float, ...] = (0.9, 0.96)
    weight_decay: float = 0.03
    clip: float = 1.0
    ema: float = 0.9999
    max_bad_steps: int = 10

    def __post_init__(self) -> None:
        require_adamw(self)


@dataclass(frozen=True)
class Stage2Config:
    """A prior's training. All intervals are in images; `batch_size` is that of all processes together.

    tokens:      the token store; the prior's TokenSpec and classes are those of the store.
    prior:       its name and options, and `sampling`: those of its sampler that hold, once it is finished, where a command does
                 not say otherwise.
    micro_batch: images that a process works on at a time (None: its whole share); results are the same.
    compile:     the blocks by torch.compile, which takes half a minute at the start; results differ by rounding.
    """

    run: str
    tokens: str
    images: int
    prior: dict[str, Any]
    seed: int = 0
    batch_size: int = 256
    micro_batch: int | None = None
    precision: Precision = "no"
    gradient_checkpointing: bool = False
    compile: bool = False
    optim: Optim = field(default_factory=Optim)
    report_every: int = 10_000
    validate_every: int = 500_000
    validation_images: int = 10_000
    snapshot_every: int = 200_000
    keep_snapshots: int = 2
    tracker: Tracker = "none"

    def __post_init__(self) -> None:
        if self.images < 1 or self.batch_size < 1:
            raise ValueError(f"images, batch_size: {self.images}, {self.batch_size}; both must be at least 1")
        least_one = ("micro_batch", "keep_snapshots", "validation_images", "report_every", "validate_every", "snapshot_every")
        require_between(self, **dict.fromkeys(least_one, (1, math.inf)), seed=(0, math.inf))
        for name in ("run", "tokens"):
            if not getattr(self, name) or "\0" in getattr(self, name):
                raise ValueError(f"{name}: {getattr(self, name)!r}; give a folder")
