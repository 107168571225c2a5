"""What both stages' optimizers share: limits of their settings, and schedules as functions of the one clock, images seen."""

from __future__ import annotations

import math
from typing import Any

import torch

from pipeline.core.config import require_between

LARGEST = 1e9  # of weights and rates: what is above is a slip
BELOW_ONE = math.nextafter(1, 0)


def require_adamw(optim: Any) -> None:
    """ValueError that names the first of the settings that both stages' optimizers have and that cannot be."""
    if optim.max_bad_steps < 1:
        raise ValueError(f"max_bad_steps: {optim.max_bad_steps}; it must be at least 1")
    if len(optim.betas) != 2:
        raise ValueError(f"betas: {list(optim.betas)}; give two, for example {list(type(optim).betas)}")
    require_between(optim, lr=(0, LARGEST), weight_decay=(0, LARGEST), warmup=(0, math.inf), clip=(0, math.inf))
    require_between(optim, final_lr=(0, 1), betas=(0, BELOW_ONE), ema=(0, 1))


def cosine_with_warmup(images_seen: int, warmup: int, total: int, final: float) -> float:
    """A factor for the learning rate: linear from 0 over `warmup` images, then a half cosine from 1 to `final`."""
    if images_seen < warmup:
        return images_seen / warmup
    progress = min(1.0, (images_seen - warmup) / max(1, total - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every parameter group, times the group's `factor` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)


def crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` images lies in (before, after]: the moment to report or to save."""
    return every > 0 and after // every > before // every
