"""How a scalar moves from start to end as progress goes from 0 to 1."""

import math


def linear(start: float, end: float, progress: float) -> float:
    return start + (end - start) * progress


def geometric(start: float, end: float, progress: float) -> float:
    """Equal ratios in equal times; both ends positive."""
    return start * (end / start) ** progress


def cosine(start: float, end: float, progress: float) -> float:
    """Slow at both ends: half a period of a cosine."""
    return linear(end, start, (1 + math.cos(math.pi * progress)) / 2)


SCHEDULES = {"cosine": cosine, "linear": linear, "geometric": geometric}
