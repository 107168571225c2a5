"""How a scalar moves from start to end as progress goes from 0 to 1."""


def linear(start: float, end: float, progress: float) -> float:
    return start + (end - start) * progress


def geometric(start: float, end: float, progress: float) -> float:
    """Equal ratios in equal times; both ends positive."""
    return start * (end / start) ** progress


SCHEDULES = {"linear": linear, "geometric": geometric}
