"""Schedules as functions of the one clock, images seen."""

from __future__ import annotations

import math

import torch


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
