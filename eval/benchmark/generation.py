"""What a benchmark measures of a prior's samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eval.benchmark.bench import SUFFIX, Bench, Saved, limit, spread
from eval.cost import parameters, training_cost
from eval.features import extract
from eval.judge import Judge
from eval.measures import metric
from eval.metrics import Estimate, frechet_distance, inception_score, kernel_distance, precision_recall
from eval.neighbours import memorised, thumbnails, with_mirrored
from eval.parts import Part, prior_bits, sample, sample_sheet, sampling_options
from eval.pictures import save_sheet
from eval.results import Metric
from pipeline.api import ImageGenerator

CHOICE_SEEDS = 500_000  # the offset of the seeds with which the guidance scale is chosen
SHOWN_NEAREST = 8  # samples beside their nearest training images


def generation(bench: Bench, model: ImageGenerator, scales: tuple[float, ...], run: Path, folder: Path) -> Part:
    """How a prior's samples compare with real images, at the guidance scale that is best on samples of other seeds."""
    judge = bench.judge
    model.to(judge.device)
    curve = [_curve_point(bench, model, scale) for scale in scales]
    chosen = choose_guidance(scales, [point["kid"] for point in curve])
    options = sampling_options(model, judge.config, brought=False, guidance_scale=chosen)

    small: list[Tensor] = []
    saved = Saved(bench.pictures, "images")

    def seen(images: Tensor) -> None:
        saved.add(images)
        small.append(thumbnails(images))

    found = sample(judge, model, options, seen=seen)
    _save_reference(bench)
    metrics = found.metrics | limit(found.metrics["fd"], found.features, judge.reference) | spread(judge, found.features)
    bits, t = prior_bits(judge, model), model.tokenizer.spec.t
    own = Estimate(bits.value, bits.standard_error, bits.without_block).scaled(t)
    metrics["prior_bits"] = bits
    metrics["prior_bits_per_image"] = metric("Prior bits per image", own, bits.n, "neither", unit="bits")
    copied = copied_images(judge, small)
    metrics |= copied.metrics

    order = copied.ratios.argsort()[:SHOWN_NEAREST]
    labels, seeds = found.labels[order].tolist(), [found.seeds[i] for i in order.tolist()]
    shown = [batch.cpu() for batch in model.batches(labels, seeds, options, len(order))]
    rows, mirrored = copied.rows[order].tolist(), copied.mirrored[order].tolist()
    near = [judge.images["train"][row]["image"] for row in rows]
    near = torch.stack([image.flip(-1) if flipped else image for image, flipped in zip(near, mirrored, strict=True)])
    save_sheet(folder / f"nearest{SUFFIX}", torch.cat([*shown, near]), len(order))
    sheet = sample_sheet(judge, model, options, folder, SUFFIX)
    details = {
        **found.details,
        "curve": curve,
        "chosen": chosen,
        "memorisation": {
            **copied.details,
            "ratios": [round(ratio, 4) for ratio in copied.ratios[order].tolist()],
            "rows": rows,
            "mirrored": mirrored,
        },
        "cost": {
            "parameters": parameters(model.prior),
            "train_seconds": training_cost(run)["train_seconds"],
            "images_per_second": found.details["images_per_second"],
        },
        "nearest": {"tile": [judge.image_size] * 2, "count": len(order)},
        **sheet.details,
    }
    return Part(metrics, judge.reference.describe(), details, {**sheet.pictures, "nearest": f"nearest{SUFFIX}"})


def choose_guidance(scales: Sequence[float], distances: Sequence[float]) -> float:
    """The scale whose distance is smallest on the parabola through the curve, over the logarithm of the scale.

    The distances are KID, which is unbiased at any n: that of few samples is mostly chance, and the parabola, which up to three
    points lie on, takes some of it out of more.
    """
    x = np.log(scales)
    line = np.polynomial.Polynomial.fit(x, distances, min(2, len(scales) - 1))
    return scales[int(np.argmin(line(x)))]


def _curve_point(bench: Bench, model: ImageGenerator, scale: float) -> dict[str, Any]:
    judge, count = bench.judge, bench.config.curve_images
    options = sampling_options(model, judge.config, brought=False, guidance_scale=scale)
    labels, seeds = judge.sample_labels(count), judge.sample_seeds(count, CHOICE_SEEDS)
    batches = (batch.cpu() for batch in model.batches(labels.tolist(), seeds, options, judge.config.batch_size))
    found = extract(batches, judge.extractor, count, f"samples at guidance {scale:g}")
    kept = judge.reference.features.pool
    distance, score = frechet_distance(found.pool, judge.reference.moments), inception_score(found.logits)
    kernel = kernel_distance(found.pool, kept, judge.config.kid_subsets)
    precision, recall = precision_recall(found.pool, kept)
    return {
        "guidance": scale,
        "n": count,
        "fd": distance.value,
        "standard_error": distance.standard_error,
        "kid": kernel.value,
        "kid_standard_error": kernel.standard_error,
        "is": score.value,
        "precision": precision.value,
        "recall": recall.value,
    }


@dataclass(frozen=True)
class Copied:
    """The check for copies: its metric, what a result file says of it, and which training image is nearest to each sample."""

    metrics: dict[str, Metric]
    details: dict[str, Any]
    ratios: Float[Tensor, "n"]
    rows: Int[Tensor, "n"]
    mirrored: Bool[Tensor, "n"]


def copied_images(judge: Judge, small: list[Tensor]) -> Copied:
    """Look for copies of training images, mirrored ones too, among images of which there are thumbnails."""
    training, rows = judge.thumbnails("train")
    held_out, _ = judge.thumbnails("validation")
    found = memorised(torch.cat(small), with_mirrored(training), held_out)
    label = f"Copies of training images (and {found.alpha:.0%} of real images)"
    details = {
        "alpha": found.alpha,
        "alpha_standard_error": round(found.threshold_error, 5),
        "threshold": found.threshold,
        "training_images": len(training),
        "held_out": "validation",
        "held_out_images": len(held_out),
    }
    return Copied(
        {"memorised": metric(label, found.share, len(found.ratios), "lower", found.alpha)},
        details,
        found.ratios,
        rows[found.nearest % len(rows)],
        found.nearest >= len(rows),
    )


def _save_reference(bench: Bench) -> None:
    if bench.pictures is not None:
        saved = Saved(bench.pictures, "reference")
        for images, _ in bench.judge.real_batches("reference"):
            saved.add(images)
