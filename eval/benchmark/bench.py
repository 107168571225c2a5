"""What the three measurements of a benchmark share: its settings, its sheets of pictures, and metrics that eval.run leaves out.

All count `BenchmarkConfig.images` images, so that distances of a tokenizer, a prior and real images are biased alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from eval.benchmark.config import BenchmarkConfig
from eval.features import Features, Reference
from eval.judge import Judge
from eval.measures import metric
from eval.metrics import frechet_limit, has_limit
from eval.neighbours import density_coverage
from eval.pictures import save_images
from eval.results import Metric

SUFFIX = ".webp"  # of sheets: there is one per job, and results are committed


@dataclass(frozen=True)
class Bench:
    """What all measurements share; `pictures`: a folder for all images that are compared, or None."""

    judge: Judge
    config: BenchmarkConfig
    pictures: Path | None = None


class Saved:
    """Writes images as they pass, below a folder or nowhere."""

    def __init__(self, root: Path | None, name: str) -> None:
        self.folder, self.count = root and root / name, 0

    def add(self, images: Tensor) -> None:
        """Write the next images."""
        if self.folder is not None:
            save_images(self.folder, images, self.count)
        self.count += len(images)


def limit(distance: Metric, found: Features, reference: Reference) -> dict[str, Metric]:
    """`fd_infinity`, the limit of a Frechet distance; nothing where there are too few images for one (`has_limit`)."""
    if not has_limit(*found.pool.shape):
        return {}
    value = frechet_limit(found.pool, reference.moments)
    return {"fd_infinity": metric(f"{distance.label}, n → ∞", value, len(found), "lower", distance.floor)}


def spread(judge: Judge, found: Features) -> dict[str, Metric]:
    """Density and coverage against the reference."""
    density, coverage = density_coverage(found.pool, judge.reference.features.pool)
    name = judge.extractor.name
    return {
        "density": metric(f"Density ({name})", density, len(found), "higher"),
        "coverage": metric(f"Coverage ({name})", coverage, len(found), "higher"),
    }
