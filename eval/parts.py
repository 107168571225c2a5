"""The parts of an evaluation: each measures one thing, draws its pictures, and knows nothing of result files or of skipping."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from eval.config import EvalConfig
from eval.cost import parameters
from eval.features import Features, Reference, extract
from eval.judge import Judge, RealImages
from eval.measures import metric, reconstruction_metrics, set_metrics, usage_metrics
from eval.metrics import mean
from eval.pictures import blur, hide_cells, save_sheet
from eval.results import Metric
from pipeline.api import ImageGenerator, Tokenizer, to_uint8
from pipeline.core.code_usage import CodeUsage, code_usage
from pipeline.core.progress import progress_bar
from pipeline.core.rng import generator

DECODED = 6  # images whose decoding is shown
DECODING_STEPS = 12  # at most
ALL_CLASSES = 512  # classes that may be shown on one sheet
SMALL = 64  # pixels of an image that such a sheet may hold
SHOWN_CODES = 2048  # points of the usage curve
# where the configuration keeps a prior's options
SAMPLING = {"MaskGITPrior": "maskgit", "AutoregressivePrior": "ar", "NextScalePrior": "var"}


@dataclass(frozen=True)
class Part:
    """What a part of the evaluation found."""

    metrics: dict[str, Metric]
    reference: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sheets:
    """Sheets of pictures that were written: what a result file says of them, and their names."""

    details: dict[str, Any]
    pictures: dict[str, str]


def real_images(judge: Judge, folder: Path) -> Part:
    """The floor: what real images score that are not in the reference; and real pictures of the classes that are shown."""
    found = judge.real("floor" if judge.held_out else "validation")
    metrics = _metrics(judge, found.features, found.labels)
    shown = judge.shown_labels()
    samples = _one_of_each(judge, [label for row in shown.values() for label in row])
    save_sheet(folder / "samples.png", samples, judge.config.shown_per_group)
    details: dict[str, Any] = {"samples": shown_sheet(judge, shown), "split": "train" if judge.held_out else "validation"}
    pictures = {"samples": "samples.png"}
    if _small_enough(judge):
        save_sheet(folder / "classes.png", _one_of_each(judge, list(range(len(judge.data.class_names)))), 16)
        details["classes"] = _classes(judge)
        pictures["classes"] = "classes.png"
    return Part(metrics, judge.reference.describe(), details, pictures)


def validation_images(judge: Judge) -> Part:
    """What validation images score, which lie elsewhere than all training images."""
    found = judge.real("validation")
    return Part(_metrics(judge, found.features, found.labels), judge.reference.describe())


def blurred_copy(judge: Judge) -> Part:
    """What real images score after a Gaussian blur whose sigma is a 32nd of the image: a model should be better than that."""
    sigma = judge.image_size / 32
    found, labels = changed_images(judge, lambda images: blur(images, sigma), "a blurred copy")
    return Part(_metrics(judge, found, labels), judge.reference.describe(), {"sigma": sigma})


def decoded_copy(judge: Judge, tokenizer: Tokenizer) -> Part:
    """What real images score after the tokenizer: the best that a prior of its tokens can do."""
    found, labels = changed_images(judge, lambda images: copies(judge, tokenizer, images), "a decoded copy")
    return Part(_metrics(judge, found, labels), judge.reference.describe())


def changed_images(judge: Judge, change: Callable[[Tensor], Tensor], description: str) -> tuple[Features, Int[Tensor, "n"]]:
    """Features and labels of real images that are not in the reference, after a change."""
    which: RealImages = "floor" if judge.held_out else "validation"
    labels: list[Tensor] = []

    def images() -> Iterator[Tensor]:
        for batch, label in judge.real_batches(which):
            labels.append(label)
            yield change(batch)

    found = extract(images(), judge.extractor, len(judge.rows(which)), description)
    return found, torch.cat(labels)


@dataclass(frozen=True)
class Reconstructed:
    """What a tokenizer made of a set of real images, and how near it came: the metrics of reconstruction and of the codes."""

    metrics: dict[str, Metric]
    reference: Reference
    features: Features
    tokens: Int[Tensor, "n t d"]
    usage: CodeUsage


def reconstruct(
    judge: Judge, tokenizer: Tokenizer, which: RealImages = "validation", seen: Callable[..., None] = lambda *tensors: None
) -> Reconstructed:
    """Encode and decode real images; `seen` is shown every batch of images, their latents "b h w c" and their copies."""
    tokens: list[Tensor] = []
    reference = judge.real(which)

    @torch.no_grad()
    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for images, _ in judge.real_batches(which):
            latents = tokenizer.latents(images.to(judge.device).float() / 127.5 - 1)
            indices = tokenizer.quantize(latents).indices
            tokens.append(indices.cpu())
            decoded = to_uint8(tokenizer.decode(indices)).cpu()
            seen(images, latents, decoded)
            yield images, decoded

    metrics, features = reconstruction_metrics(pairs(), reference, judge.extractor, judge.perceptual)
    usage = code_usage(torch.cat(tokens), tokenizer.spec.sizes)
    metrics |= usage_metrics(usage, tokenizer.spec.t)
    return Reconstructed(metrics, reference, features, torch.cat(tokens), usage)


def reconstruction(judge: Judge, tokenizer: Tokenizer, folder: Path) -> Part:
    """How well a tokenizer keeps validation images, and how it uses its codes for them."""
    found = reconstruct(judge, tokenizer)
    shown = shown_reconstructions(judge, tokenizer, folder, ".png")
    details = {
        "spec": tokenizer.spec.to_dict(),
        "parameters": parameters(tokenizer),
        "quantizer": tokenizer.config["quantizer_config"],
        "usage": usage_curve(found.usage),
        "perceptual_sha256": judge.perceptual.sha256,
        **shown.details,
    }
    return Part(found.metrics, found.reference.describe(), details, shown.pictures)


def shown_reconstructions(judge: Judge, tokenizer: Tokenizer, folder: Path, suffix: str) -> Sheets:
    """Write the first validation images and what becomes of them."""
    rows = judge.rows("validation")[: judge.config.shown_images]
    shown = torch.cat([images for images, _ in judge.batches("validation", rows)])
    pictures = {name: f"{name}{suffix}" for name in ("originals", "reconstructions")}
    save_sheet(folder / pictures["originals"], shown, 8)
    save_sheet(folder / pictures["reconstructions"], copies(judge, tokenizer, shown), 8)
    return Sheets({"shown": {"tile": list(shown.shape[-2:]), "count": len(shown)}}, pictures)


def usage_curve(usage: CodeUsage, most: int = SHOWN_CODES) -> dict[str, Any]:
    """Counts of the codes that occur, by rank, at most that many of them."""
    points = torch.linspace(0, usage.active - 1, min(usage.active, most)).round().long()
    return {"size": usage.size, "active": usage.active, "rank": points.tolist(), "count": usage.counts[points].tolist()}


def sampling_options(model: ImageGenerator, config: EvalConfig, **changes: Any) -> Any:
    """How a prior samples: the configuration's options of its kind on top of those that it brings (brought=False: of the
    sampler's defaults, so that a benchmark alone says how all priors sample), with changes. UserError for one it has not, and
    for one that does nothing beside the others."""
    return model.options(**dataclasses.asdict(getattr(config, SAMPLING[type(model.prior).__name__])) | changes)


@dataclass(frozen=True)
class Sampled:
    """The samples of a prior, as features; what they score; and how they were drawn, as a result file says it."""

    metrics: dict[str, Metric]
    features: Features
    labels: Int[Tensor, "n"]
    seeds: list[int]
    details: dict[str, Any]


def sample(
    judge: Judge,
    model: ImageGenerator,
    options: Any,
    floor: dict[str, Metric] | None = None,
    seen: Callable[[Tensor], None] = lambda images: None,
) -> Sampled:
    """Draw the configured number of samples and compare them with the reference; `seen` is shown every batch of them."""
    labels, seeds = judge.sample_labels(), judge.sample_seeds(judge.config.images)
    seconds = 0.0

    def images() -> Iterator[Tensor]:
        nonlocal seconds
        started = time.monotonic()
        for batch in model.batches(labels.tolist(), seeds, options, judge.config.batch_size):
            batch = batch.cpu()
            seconds += time.monotonic() - started
            seen(batch)
            yield batch
            started = time.monotonic()

    found = extract(images(), judge.extractor, len(labels), f"samples of {type(model.prior).__name__}")
    metrics = set_metrics(
        found, labels, judge.reference, judge.probes, judge.extractor, judge.config.kid_subsets, prefix="g", floor=floor
    )
    details = {
        "prior": type(model.prior).__name__,
        "sampling": dataclasses.asdict(options),
        "groups": len(set(judge.data.groups)),
        "seeds": [seeds[0], seeds[-1] + 1],
        "images_per_second": round(len(labels) / seconds, 2),
    }
    return Sampled(metrics, found, labels, seeds, details)


def sample_sheet(judge: Judge, model: ImageGenerator, options: Any, folder: Path, suffix: str) -> Sheets:
    """Write a few samples of each group that is shown."""
    shown, name = judge.shown_labels(), f"samples{suffix}"
    flat = [label for row in shown.values() for label in row]
    save_sheet(folder / name, shown_samples(judge, model, options, flat), judge.config.shown_per_group)
    return Sheets({"samples": shown_sheet(judge, shown)}, {"samples": name})


def generation(judge: Judge, model: ImageGenerator, options: Any, floor: dict[str, Metric], folder: Path) -> Part:
    """How a prior's samples compare with real images, and how many bits it needs for real tokens."""
    found = sample(judge, model, options, floor)
    metrics = {**found.metrics, "prior_bits": prior_bits(judge, model)}
    sheet = sample_sheet(judge, model, options, folder, ".png")
    firsts = [labels[0] for labels in judge.shown_labels().values()]
    details: dict[str, Any] = {
        **found.details,
        "parameters": parameters(model.prior),
        "decoding": _decoding(judge, model, options, firsts[:DECODED], folder),
        **sheet.details,
    }
    pictures = {**sheet.pictures, "decoding": "decoding.png"}
    if _small_enough(judge):
        every = list(range(len(judge.data.class_names)))
        save_sheet(folder / "classes.png", shown_samples(judge, model, options, every), 16)
        details["classes"] = _classes(judge)
        pictures["classes"] = "classes.png"
    return Part(metrics, judge.reference.describe(), details, pictures)


def copies(judge: Judge, tokenizer: Tokenizer, images: UInt8[Tensor, "b 3 y x"]) -> UInt8[Tensor, "b 3 y x"]:
    """What the tokenizer makes of images."""
    return to_uint8(tokenizer.decode(tokenizer.encode(images.to(judge.device).float() / 127.5 - 1))).cpu()


def _metrics(judge: Judge, features: Features, labels: Tensor) -> dict[str, Metric]:
    return set_metrics(features, labels, judge.reference, judge.probes, judge.extractor, judge.config.kid_subsets)


def prior_bits(judge: Judge, model: ImageGenerator) -> Metric:
    """Bits per token of the validation images' tokens under the prior, and the standard error over images.

    Fewer are better among priors of one tokenizer; between tokenizers they say as much of the codes' entropy: no direction.
    """
    rows = judge.rows("validation")
    bits = []
    with progress_bar(len(rows), "bits of real tokens") as bar:
        for number, (images, labels) in enumerate(judge.batches("validation", rows)):
            tokens = model.tokenizer.encode(images.to(judge.device).float() / 127.5 - 1)
            noise = model.prior.draw_noise(len(labels), generator(judge.config.seed, "bits", number))
            moved = {name: values.to(judge.device) for name, values in noise.items()}
            with torch.no_grad():
                bits.append(model.prior.validation_bits(tokens, labels.to(judge.device), moved).cpu())
            bar.update(len(labels))
    value = mean(torch.cat(bits) / model.tokenizer.spec.t)
    return metric("Prior bits per token", value, len(torch.cat(bits)), "neither", unit="bits")


def shown_samples(judge: Judge, model: ImageGenerator, options: Any, labels: list[int]) -> UInt8[Tensor, "b 3 y x"]:
    """Samples of these classes with the seeds 0, 1, …"""
    seeds = list(range(len(labels)))
    return torch.cat([batch.cpu() for batch in model.batches(labels, seeds, options, judge.config.batch_size)])


def _decoding(judge: Judge, model: ImageGenerator, options: Any, labels: list[int], folder: Path) -> dict[str, Any]:
    """Write the sheet of a few images while they are sampled: one row each, the cells not yet known left transparent."""
    samples = model.prior.sample(labels, options, list(range(len(labels))), trace=True)
    images = model.decode(samples.tokens).cpu()
    h, w = model.tokenizer.spec.grid
    grids = [(grid[:, -h * w :, 0] >= 0).view(-1, h, w).cpu() for grid in samples.trace]
    chosen = sorted({round(step) for step in torch.linspace(0, len(grids) - 1, DECODING_STEPS).tolist()})
    tiles = torch.stack([hide_cells(images, grids[step]) for step in chosen], 1).flatten(0, 1)
    save_sheet(folder / "decoding.png", tiles, len(chosen))
    names = [judge.data.class_names[label] for label in labels]
    steps = {"steps": [step + 1 for step in chosen], "of": len(grids), "tokens": model.tokenizer.spec.t}
    return {"tile": list(images.shape[-2:]), "names": names, **steps}


def _one_of_each(judge: Judge, labels: list[int]) -> Tensor:
    """A real image for every label: validation images first, in their order, others where a class comes more often."""
    waiting: dict[int, list[tuple[str, int]]] = {}
    wanted = set(labels)
    for split in ("train", "validation"):
        for row, label in reversed(list(enumerate(judge.images[split].pixels.labels.tolist()))):
            if label in wanted:
                waiting.setdefault(label, []).append((split, row))
    found = []
    for label in labels:
        split, row = waiting[label].pop()
        image = judge.images[split][row]["image"]
        found.append(image if image.numel() else torch.zeros(3, judge.image_size, judge.image_size, dtype=torch.uint8))
    return torch.stack(found)


def shown_sheet(judge: Judge, shown: dict[str, list[int]]) -> dict[str, Any]:
    """What a sheet of samples holds, for the report: the size of its tiles and the class of each."""
    names = {group: [judge.data.class_names[label] for label in labels] for group, labels in shown.items()}
    return {"tile": [judge.image_size] * 2, "rows": names}


def _classes(judge: Judge) -> dict[str, Any]:
    return {"tile": [judge.image_size] * 2, "names": list(judge.data.class_names)}


def _small_enough(judge: Judge) -> bool:
    return len(judge.data.class_names) <= ALL_CLASSES and judge.image_size <= SMALL
