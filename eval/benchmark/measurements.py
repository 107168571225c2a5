"""The three measurements of a benchmark: of a tokenizer, of a prior, and of real images for comparison.

All count `BenchmarkConfig.images` images, so that distances of a tokenizer, a prior and real images are biased alike.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.benchmark.config import BenchmarkConfig
from eval.codebook import geometry, gersho_slope
from eval.cost import flops_per_image, training_cost, training_course
from eval.features import Features, Reference, extract
from eval.judge import Judge
from eval.measures import reconstruction_metrics, set_metrics, usage_metrics
from eval.metrics import Estimate, frechet_distance, frechet_limit, inception_score, precision_recall
from eval.neighbours import density_coverage, memorised, nearest
from eval.parts import (
    Part,
    changed_images,
    copies,
    prior_bits,
    real_images,
    sampling_options,
    shown_samples,
    shown_sheet,
    usage_curve,
)
from eval.perturbation import perturbed
from eval.pictures import blur, save_images, save_sheet
from eval.results import Metric
from pipeline.api import ImageGenerator, Tokenizer, to_uint8
from pipeline.core.code_usage import code_usage

PERTURBED = 256  # images whose tokens are perturbed
LATENTS = 16_384  # that are kept to look at
LARGEST_TABLE = 1 << 24  # numbers
SHOWN_CODES = 600  # of the usage curve, and whose cells are measured; results are committed, so they stay small
COMPARED = 2000  # latents whose nearest code is sought
NEAREST_SHARE, LARGEST_ERROR = 0.95, 0.5  # of a codebook whose cells are those of nearest vectors, among the latents
CHOICE_SEEDS = 500_000  # the offset of the seeds with which the guidance scale is chosen
SHOWN_NEAREST = 16  # samples beside their nearest training images


@dataclass(frozen=True)
class Bench:
    """What all measurements share; `pictures`: a folder for all images that are compared, or None."""

    judge: Judge
    config: BenchmarkConfig
    pictures: Path | None = None


def quality(bench: Bench, tokenizer: Tokenizer, run: Path, folder: Path) -> Part:
    """How well a tokenizer keeps images, how its decoder bears wrong tokens, how it uses its codes, and what it costs."""
    judge, spec = bench.judge, tokenizer.spec
    flops = flops_per_image(tokenizer)
    tokenizer.to(judge.device)  # pyright: ignore[reportArgumentType]
    rows, real = judge.rows("validation"), judge.real("validation")
    kept: list[Tensor] = []
    tokens: list[Tensor] = []
    originals = _Saved(bench.pictures, "reference")
    reconstructions = _Saved(bench.pictures, "images")

    @torch.no_grad()
    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for images, _ in judge.batches("validation", rows):
            latents = tokenizer.latents(images.to(judge.device).float() / 127.5 - 1)
            indices = tokenizer.quantize(latents).indices
            if sum(map(len, kept)) < LATENTS:
                kept.append(latents.flatten(0, 2).cpu())
            tokens.append(indices.cpu())
            decoded = to_uint8(tokenizer.decode(indices)).cpu()
            originals.add(images)
            reconstructions.add(decoded)
            yield images, decoded

    metrics, found = reconstruction_metrics(pairs(), real, judge.extractor, judge.perceptual)
    indices = torch.cat(tokens)
    usage = code_usage(indices, spec.sizes)
    metrics |= _limit(metrics["fd"], found, real) | usage_metrics(usage, spec.t)
    bits = spec.bits_per_image
    metrics["nominal_bits_per_image"] = Metric("Bits per image (nominal)", bits, len(found), "neither", unit="bits")

    decoded, _ = changed_images(judge, lambda images: copies(judge, tokenizer, images), "a decoded copy")
    metrics["decoded_fd"] = _distance(f"Decoded {judge.extractor.label('fd')}", decoded, judge.reference)
    curve = _perturbed_distances(bench, tokenizer, indices, found, real)
    middle = curve[(len(bench.config.perturbations) + 1) // 2]
    label = f"p{judge.extractor.label('fd')}, {100 * middle['share']:g} % of the indices replaced"
    metrics["pfd"] = Metric(label, middle["fd"], middle["n"], "lower", middle["standard_error"])

    shown = torch.cat([images for images, _ in judge.batches("validation", rows[: judge.config.shown_images])])
    save_sheet(folder / "originals.png", shown, 8)
    save_sheet(folder / "reconstructions.png", copies(judge, tokenizer, shown), 8)
    details = {
        "spec": spec.to_dict(),
        "quantizer": tokenizer.config["quantizer_config"],
        "cost": {
            "parameters": _parameters(tokenizer),
            "quantizer_parameters": _parameters(tokenizer.quantizer),
            "flops_per_image": flops,
            **training_cost(run),
        },
        "usage": usage_curve(usage, SHOWN_CODES),
        "pfd": curve,
        **_inside(tokenizer, torch.cat(kept)[:LATENTS], indices),
        "training": training_course(run, tokenizer),
        "shown": {"tile": list(shown.shape[-2:]), "count": len(shown)},
        "perceptual_sha256": judge.perceptual.sha256,
    }
    pictures = {"originals": "originals.png", "reconstructions": "reconstructions.png"}
    return Part(metrics, real.describe(), details, pictures)


def generation(bench: Bench, model: ImageGenerator, scales: tuple[float, ...], run: Path, folder: Path) -> Part:
    """How a prior's samples compare with real images, at the guidance scale that is best on samples of other seeds."""
    judge, config = bench.judge, bench.judge.config
    model.to(judge.device)
    curve = [_curve_point(bench, model, scale) for scale in scales]
    chosen = min(curve, key=lambda point: point["fd"])["guidance"]
    options = sampling_options(model, config, guidance_scale=chosen)

    labels, seeds = judge.sample_labels(), judge.sample_seeds(config.images)
    saved, clock = _Saved(bench.pictures, "images"), _Clock()
    batches = model.batches(labels.tolist(), seeds, options, config.batch_size)
    found = extract(saved.all(clock.all(batches)), judge.extractor, len(labels), f"samples of {type(model.prior).__name__}")
    _save_reference(bench)
    metrics = set_metrics(found, labels, judge.reference, judge.probes, judge.extractor, config.kid_subsets, prefix="g")
    metrics |= _limit(metrics["fd"], found, judge.reference) | _spread(judge, found, judge.reference)
    bits = prior_bits(judge, model)
    t = model.tokenizer.spec.t
    metrics["prior_bits"] = bits
    error = None if bits.standard_error is None else bits.standard_error * t
    metrics["prior_bits_per_image"] = Metric("Prior bits per image", bits.value * t, bits.n, "lower", error, unit="bits")
    copied = _memorised(judge, found, metrics)

    order = copied.distances.argsort()[:SHOWN_NEAREST].tolist()
    shown = [batch.cpu() for batch in model.batches(labels[order].tolist(), [seeds[i] for i in order], options, len(order))]
    rows = judge.training.labels[copied.nearest[order]].tolist()
    neighbours = torch.stack([judge.images["train"][row]["image"] for row in rows])
    save_sheet(folder / "nearest.png", torch.cat([*shown, neighbours]), len(order))
    sheet = judge.shown_labels()
    flat = [label for row in sheet.values() for label in row]
    save_sheet(folder / "samples.png", shown_samples(judge, model, options, flat), config.shown_per_group)
    details = {
        "prior": type(model.prior).__name__,
        "sampling": dataclasses.asdict(options),
        "curve": curve,
        "chosen": chosen,
        "seeds": [seeds[0], seeds[-1] + 1],
        "groups": len(set(judge.data.groups)),
        "memorisation": {
            "alpha": copied.alpha,
            "threshold": copied.threshold,
            "training_images": len(judge.training.features),
            "held_out": "validation",
            "distances": [round(distance, 4) for distance in copied.distances[order].tolist()],
            "rows": rows,
        },
        "cost": {
            "parameters": _parameters(model.prior),
            "train_seconds": training_cost(run)["train_seconds"],
            "images_per_second": round(len(labels) / clock.seconds, 2),
        },
        "samples": shown_sheet(judge, sheet),
        "nearest": {"tile": [judge.image_size] * 2, "count": len(order)},
    }
    return Part(metrics, judge.reference.describe(), details, {"samples": "samples.png", "nearest": "nearest.png"})


def yardstick(bench: Bench, folder: Path) -> Part:
    """What real images and a blurred copy of them score: `real_fd`, `validation_is`, `blurred_memorised`, …"""
    judge = bench.judge
    part = real_images(judge, folder)
    floor, validation = judge.real("floor" if judge.held_out else "validation"), judge.real("validation")
    sigma = judge.image_size / 32
    blurred, blurred_labels = changed_images(judge, lambda images: blur(images, sigma), "a blurred copy")
    metrics: dict[str, Metric] = {}
    for name, found, labels in (
        ("real", floor.features, floor.labels),
        ("validation", validation.features, validation.labels),
        ("blurred", blurred, blurred_labels),
    ):
        own = set_metrics(found, labels, judge.reference, judge.probes, judge.extractor, judge.config.kid_subsets)
        own |= _limit(own["fd"], found, judge.reference) | _spread(judge, found, judge.reference)
        if name == "blurred" and judge.held_out:  # copies of training images: what the check for copies has to find
            _memorised(judge, found, own)
        metrics |= {f"{name}_{key}": replace(metric, label=f"{metric.label}, {name} images") for key, metric in own.items()}
    return replace(part, metrics=metrics, details={**part.details, "sigma": sigma})


def _curve_point(bench: Bench, model: ImageGenerator, scale: float) -> dict[str, Any]:
    judge, count = bench.judge, bench.config.curve_images
    options = sampling_options(model, judge.config, guidance_scale=scale)
    labels, seeds = judge.sample_labels(count), judge.sample_seeds(count, CHOICE_SEEDS)
    batches = (batch.cpu() for batch in model.batches(labels.tolist(), seeds, options, judge.config.batch_size))
    found = extract(batches, judge.extractor, count, f"samples at guidance {scale:g}")
    distance, score = frechet_distance(found.pool, judge.reference.moments), inception_score(found.logits)
    precision, recall = precision_recall(found.pool, judge.reference.features.pool)
    return {
        "guidance": scale,
        "n": count,
        "fd": distance.value,
        "standard_error": distance.standard_error,
        "is": score.value,
        "precision": precision.value,
        "recall": recall.value,
    }


def _perturbed_distances(
    bench: Bench, tokenizer: Tokenizer, tokens: Tensor, whole: Features, real: Reference
) -> list[dict[str, Any]]:
    """The distance of a few reconstructions after each share of perturbed indices, none of them first."""
    judge, n = bench.judge, min(PERTURBED, len(tokens))
    spec, seeds = tokenizer.spec, range(n)

    def images(share: float) -> Iterator[Tensor]:
        for rows in torch.arange(n).split(judge.config.batch_size):
            spoilt = perturbed(tokens[rows], spec.sizes, share, [seeds[row] for row in rows.tolist()])
            yield to_uint8(tokenizer.decode(spoilt.to(judge.device))).cpu()

    pools = {0.0: whole.pool[:n]}
    for share in bench.config.perturbations:
        pools[share] = extract(images(share), judge.extractor, n, f"{share:.0%} of the indices replaced").pool
    curve = []
    for share, pool in pools.items():
        distance = frechet_distance(pool, real.moments)
        curve.append({"share": share, "n": n, "fd": distance.value, "standard_error": distance.standard_error})
    return curve


def _inside(tokenizer: Tokenizer, latents: Tensor, tokens: Tensor) -> dict[str, Any]:
    """The geometry of a codebook that is a table of vectors, and the Gersho slope where its cells are those of nearest ones."""
    table = code_table(tokenizer)
    if table is None:
        return {"geometry": None, "gersho": None}
    counts = tokens.flatten().bincount(minlength=len(table))
    chosen = tokens.flatten()[: len(latents)]
    some = slice(0, COMPARED)
    agree = (nearest(latents[some], table)[1] == chosen[some]).float().mean().item()
    error = (latents - table[chosen]).square().sum(1).mean() / (latents - latents.mean(0)).square().sum(1).mean()
    note = f"{agree:.0%} of the latents have the nearest code; squared error {error.item():.2g} of the latents' variance"
    used = counts.nonzero().flatten()
    used = used[torch.linspace(0, len(used) - 1, min(len(used), SHOWN_CODES)).round().long()]
    slope = gersho_slope(latents, table[used]) if agree >= NEAREST_SHARE and error <= LARGEST_ERROR else None
    return {
        "geometry": geometry(latents, table, counts) | {"note": note},
        "gersho": slope
        and {
            "log_density": [round(value, 3) for value in slope.log_density.tolist()],
            "log_volume": [round(value, 3) for value in slope.log_volume.tolist()],
            "slope": slope.slope,
            "expected_slope": slope.expected,
            "dimension": slope.dimension,
        },
    }


@torch.no_grad()
def code_table(tokenizer: Tokenizer) -> Tensor | None:
    """The code vectors "k c" of a tokenizer whose codes are one table in the space of its latents; None for others."""
    quantizer, spec = tokenizer.quantizer, tokenizer.spec
    alone = spec.d == 1 and len(spec.scales) == 1 and quantizer.input_dim == quantizer.dim
    if not alone or spec.sizes[0] * quantizer.dim > LARGEST_TABLE:
        return None
    codes = torch.arange(spec.sizes[0], device=tokenizer.device)[:, None, None]
    return quantizer.dequantize(codes, (1, 1))[:, 0, 0].float().cpu()


def _distance(label: str, found: Features, reference: Reference) -> Metric:
    value = frechet_distance(found.pool, reference.moments)
    return Metric(label, value.value, len(found), "lower", value.standard_error)


def _limit(distance: Metric, found: Features, reference: Reference) -> dict[str, Metric]:
    value = frechet_limit(found.pool, reference.moments, Estimate(distance.value, distance.standard_error))
    label = f"{distance.label}, n → ∞"
    return {"fd_infinity": replace(distance, label=label, value=value.value, standard_error=value.standard_error)}


def _spread(judge: Judge, found: Features, reference: Reference) -> dict[str, Metric]:
    density, coverage = density_coverage(found.pool, reference.features.pool)
    name = judge.extractor.name
    return {
        "density": Metric(f"Density ({name})", density.value, len(found), "higher", density.standard_error),
        "coverage": Metric(f"Coverage ({name})", coverage.value, len(found), "higher"),
    }


def _memorised(judge: Judge, found: Features, metrics: dict[str, Metric]) -> Any:
    copied = memorised(found.pool, judge.training.features.pool, judge.real("validation").features.pool)
    label = f"Nearer to a training image than {1 - copied.alpha:.0%} of validation images ({judge.extractor.name})"
    # real images of the same kind would score alpha
    metrics["memorised"] = Metric(label, copied.share.value, len(found), "neither", copied.share.standard_error, copied.alpha)
    return copied


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _save_reference(bench: Bench) -> None:
    if bench.pictures is not None:
        saved = _Saved(bench.pictures, "reference")
        for images, _ in bench.judge.batches("train", bench.judge.rows("reference")):
            saved.add(images)


class _Saved:
    """Writes images as they pass, below a folder or nowhere."""

    def __init__(self, root: Path | None, name: str) -> None:
        self.folder, self.count = root and root / name, 0

    def add(self, images: Tensor) -> None:
        if self.folder is not None:
            save_images(self.folder, images, self.count)
        self.count += len(images)

    def all(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        for batch in batches:
            self.add(batch)
            yield batch


class _Clock:
    """Adds up the seconds in which batches are made, without those in which they are used."""

    seconds = 0.0

    def all(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        started = time.monotonic()
        for batch in batches:
            batch = batch.cpu()
            self.seconds += time.monotonic() - started
            yield batch
            started = time.monotonic()
