"""How many tokens are masked, how many are revealed at each step, and how strong the guidance is there."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

# gamma: [0, 1] -> [0, 1] with gamma(0) = 1 and gamma(1) = 0: the share of masked tokens
# (MaskGIT, Chang et al. 2022, section 3.3; arccos: Besnier & Chen 2023). In training its argument is uniform,
# in sampling it is the share of the steps that are done.
MASK_SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "arccos": lambda u: torch.acos(u) * (2 / math.pi),
    "cosine": lambda u: torch.cos(u * (math.pi / 2)),
    "linear": lambda u: 1 - u,
    "square": lambda u: 1 - u.square(),
    "cubic": lambda u: 1 - u**3,
    "root": lambda u: 1 - u.sqrt(),
}


def mask_counts(uniforms: Float[Tensor, " b"], t: int, schedule: str) -> Int[Tensor, " b"]:
    """How many of `t` tokens to mask in training: ceil(gamma(u) t), at least one."""
    return (MASK_SCHEDULES[schedule](uniforms.double()) * t).ceil().long().clamp(1, t)


@lru_cache(maxsize=4096)
def reveal_counts(unknown: int, steps: int, schedule: str) -> tuple[int, ...]:
    """How many of `unknown` tokens each step reveals: min(steps, unknown) positive counts that sum to `unknown`.

    floor(unknown gamma(r)) tokens stay masked after the share r of the steps, or as near as leaves at least one token
    for this step and each of those to come: steps == tokens reveals one at a time under every schedule.
    """
    steps = min(steps, unknown)
    shares = MASK_SCHEDULES[schedule](torch.arange(1, steps + 1, dtype=torch.float64) / max(steps, 1)).tolist()
    counts, left = [], unknown
    for step, share in enumerate(shares):
        rest = min(max(math.floor(unknown * share + 1e-9), steps - 1 - step), left - 1)
        counts.append(left - rest)
        left = rest
    return tuple(counts)


# (scale, share of the steps done, share of the tokens revealed, power) -> scale of this step.
# Convention everywhere: guided = unconditional + scale (conditional - unconditional); papers that write
# (1 + w) conditional - w unconditional have scale = 1 + w.
GUIDANCE_SCHEDULES: dict[str, Callable[[float, float, float, float], float]] = {
    "constant": lambda scale, done, revealed, power: scale,
    "linear": lambda scale, done, revealed, power: 1 + (scale - 1) * revealed,  # Muse, MAR
    "power_cosine": lambda scale, done, revealed, power: (
        1 + (scale - 1) * (1 - math.cos(math.pi * done**power)) / 2
    ),  # MDT, RAR, MaskBit
}
