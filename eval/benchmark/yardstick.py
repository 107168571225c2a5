"""What real images score in a benchmark."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from eval.benchmark.bench import Bench, limit, spread
from eval.benchmark.generation import copied_images
from eval.measures import set_metrics
from eval.neighbours import thumbnails
from eval.parts import Part, changed_images, real_images
from eval.pictures import blur
from eval.results import Metric


def yardstick(bench: Bench, folder: Path) -> Part:
    """What real images and a blurred copy of them score: `real_fd`, `validation_is`, `blurred_memorised`, …

    The blurred copy is one of training images where there are enough: of it the check for copies has to find all.
    """
    judge = bench.judge
    part = real_images(judge, folder)
    floor, validation = judge.real("floor" if judge.held_out else "validation"), judge.real("validation")
    sigma = judge.image_size / 32
    small: list[Tensor] = []

    def blurred_images(images: Tensor) -> Tensor:
        soft = blur(images, sigma)
        small.append(thumbnails(soft))
        return soft

    blurred, blurred_labels = changed_images(judge, blurred_images, "a blurred copy")
    metrics: dict[str, Metric] = {}
    for name, found, labels in (
        ("real", floor.features, floor.labels),
        ("validation", validation.features, validation.labels),
        ("blurred", blurred, blurred_labels),
    ):
        own = set_metrics(found, labels, judge.reference, judge.probes, judge.extractor, judge.config.kid_subsets)
        own |= limit(own["fd"], found, judge.reference) | spread(judge, found)
        if name == "blurred":
            own |= copied_images(judge, small).metrics
        metrics |= {f"{name}_{key}": replace(metric, label=f"{metric.label}, {name} images") for key, metric in own.items()}
    return replace(part, metrics=metrics, details={**part.details, "sigma": sigma})
