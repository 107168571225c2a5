"""What is measured on reconstructions and on samples: functions of iterables of images that know no model and no file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from eval.extractors import Extractor
from eval.features import Features, Reference, extract
from eval.metrics import Estimate, frechet_distance, inception_score, kernel_distance, mean, precision_recall, psnr, ssim
from eval.probe import LinearProbe, fit_probe
from eval.results import Metric
from pipeline.core.code_usage import CodeUsage
from pipeline.core.perceptual import Perceptual

Better = Literal["lower", "higher", "neither"]
Pairs = Iterable[tuple[UInt8[Tensor, "b 3 y x"], UInt8[Tensor, "b 3 y x"]]]


def metric(label: str, found: Estimate, n: int, better: Better, floor: float | None = None, unit: str = "") -> Metric:
    """An estimate as a result file holds it."""
    return Metric(label, found.value, n, better, found.standard_error, floor, unit, found.without_block)


@dataclass(frozen=True)
class Probe:
    """A classifier of images: `targets[label]` is what it should say of an image of that class."""

    label: str
    targets: Int[Tensor, "classes"]
    classifier: LinearProbe


def fit_probes(reference: Reference, groups: Sequence[str], extractor: Extractor) -> dict[str, Probe]:
    """Probes of the class, and of its group where classes share groups, learned from the reference's images.

    A probe is left out where the reference has fewer than two images of a class on average, or there is one class only.
    """
    names = sorted(set(groups))
    wanted = {"class_accuracy": ("Class", torch.arange(len(groups)), len(groups))}
    if len(names) < len(groups):
        targets = torch.tensor([names.index(group) for group in groups])
        wanted = {"group_accuracy": ("Group", targets, len(names)), **wanted}
    probes = {}
    for name, (label, targets, count) in wanted.items():
        if 1 < count <= len(reference.labels) / 2:
            classifier = fit_probe(reference.features.pool, targets[reference.labels], count)
            probes[name] = Probe(f"{label} accuracy ({extractor.name} probe)", targets, classifier)
    return probes


def set_metrics(
    found: Features,
    labels: Int[Tensor, "n"],
    reference: Reference,
    probes: Mapping[str, Probe],
    extractor: Extractor,
    kid_subsets: int,
    prefix: str = "",
    floor: Mapping[str, Metric] | None = None,
) -> dict[str, Metric]:
    """How a set of images, which should be of these classes, compares with the reference as a whole.

    `prefix` comes before the Frechet distance's name ("g" for generated images); `floor` are the metrics of real images.
    """
    n = len(found)
    kept = reference.features.pool
    precision, recall = precision_recall(found.pool, kept)
    measured: dict[str, tuple[str, Estimate, Better]] = {
        "fd": (prefix + extractor.label("fd"), frechet_distance(found.pool, reference.moments), "lower"),
        "kid": (extractor.label("kid"), kernel_distance(found.pool, kept, kid_subsets), "lower"),
        "is": (extractor.label("is"), inception_score(found.logits), "higher"),
        "precision": (extractor.label("precision"), precision, "higher"),
        "recall": (extractor.label("recall"), recall, "higher"),
    }
    for name, probe in probes.items():
        right = probe.classifier.predict(found.pool) == probe.targets[labels]
        measured[name] = (probe.label, mean(right.double()), "higher")
    return {
        name: metric(label, value, n, better, floor[name].value if floor else None)
        for name, (label, value, better) in measured.items()
    }


def reconstruction_metrics(
    pairs: Pairs, reference: Reference, extractor: Extractor, perceptual: Perceptual, description: str = "reconstructions"
) -> tuple[dict[str, Metric], Features]:
    """How near reconstructions come to their images, one by one and as a set; and the reconstructions' features.

    The reference holds the very same images.
    """
    values: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "perceptual": []}
    device = next(perceptual.parameters()).device

    def reconstructions() -> Iterator[Tensor]:
        for images, others in pairs:
            with torch.inference_mode():
                inputs = (pixels.to(device).float() / 127.5 - 1 for pixels in (images, others))
                values["perceptual"].append(perceptual(*inputs).cpu())
            values["psnr"].append(psnr(images, others))
            values["ssim"].append(ssim(images, others))
            yield others

    found = extract(reconstructions(), extractor, reference.moments.n, description)
    n = len(found)
    kinds: dict[str, tuple[str, Better, float | None, str]] = {
        "psnr": ("PSNR", "higher", None, "dB"),
        "ssim": ("SSIM", "higher", 1.0, ""),
        "perceptual": (perceptual.label, "lower", 0.0, ""),
    }
    distance = frechet_distance(found.pool, reference.moments)
    metrics = {"fd": metric("r" + extractor.label("fd"), distance, n, "lower", 0.0)}
    for name, (label, better, best, unit) in kinds.items():
        metrics[name] = metric(label, mean(torch.cat(values[name])), n, better, best, unit)
    return metrics, found


def usage_metrics(usage: CodeUsage, tokens_per_image: int) -> dict[str, Metric]:
    """How the codes are used, over the tokens that were counted.

    None of it is better by itself: codes that are used more often give a prior more to learn.
    """
    return {
        "codes_used": Metric("Codes used", usage.share, usage.n, "neither"),
        "perplexity": Metric("Code perplexity", usage.perplexity, usage.n, "neither"),
        "bits_per_token": Metric("Bits per token (entropy)", usage.effective_bits, usage.n, "neither", unit="bits"),
        "bits_per_image": Metric(
            "Bits per image (entropy)", usage.effective_bits * tokens_per_image, usage.n, "neither", unit="bits"
        ),
    }
