"""What a benchmark measures of a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.benchmark.bench import SUFFIX, Bench, Saved, limit
from eval.codebook import geometry, gersho_slope
from eval.cost import flops_per_image, parameters, training_cost, training_course
from eval.features import extract
from eval.measures import metric
from eval.metrics import Estimate, frechet_distance
from eval.neighbours import nearest
from eval.parts import Part, Reconstructed, changed_images, copies, reconstruct, shown_reconstructions, usage_curve
from eval.perturbation import perturbed
from eval.results import Metric
from pipeline.api import Tokenizer, to_uint8

PERTURBED = 1024  # images whose tokens are perturbed, at most
UNSEEN = ("fd", "psnr", "ssim", "perceptual")  # also measured on images that no setting was chosen on, where there are some
LATENTS = 16_384  # that are kept to look at
LARGEST_TABLE = 1 << 24  # numbers
SHOWN_CODES = 600  # of the usage curve, and whose cells are measured; results are committed, so they stay small
COMPARED = 2000  # latents whose nearest code is sought
# of a codebook whose cells are those of nearest vectors, and so small that high-rate theory holds: with more than a quarter of
# the variance left, slopes of nearly optimal codebooks of normal latents in 8 dimensions are off by more than 0.2
NEAREST_SHARE, LARGEST_ERROR = 0.95, 0.25


def quality(bench: Bench, tokenizer: Tokenizer, run: Path, folder: Path) -> Part:
    """How well a tokenizer keeps images, how its decoder bears wrong tokens, how it uses its codes, and what it costs."""
    judge, spec = bench.judge, tokenizer.spec
    flops = flops_per_image(tokenizer)
    tokenizer.to(judge.device)  # pyright: ignore[reportArgumentType]
    kept: list[Tensor] = []
    originals, reconstructions = Saved(bench.pictures, "reference"), Saved(bench.pictures, "images")

    def seen(images: Tensor, latents: Tensor, decoded: Tensor) -> None:
        if sum(map(len, kept)) < LATENTS:
            kept.append(latents.flatten(0, 2).cpu())
        originals.add(images)
        reconstructions.add(decoded)

    found = reconstruct(judge, tokenizer, seen=seen)
    metrics, n = found.metrics, len(found.features)
    metrics |= limit(metrics["fd"], found.features, found.reference)
    if judge.data.unseen is not None:
        unseen = reconstruct(judge, tokenizer, "unseen").metrics
        metrics |= {f"unseen_{name}": replace(unseen[name], label=f"{unseen[name].label}, unseen images") for name in UNSEEN}
    metrics["nominal_bits_per_image"] = Metric("Bits per image (nominal)", spec.bits_per_image, n, "neither", unit="bits")

    decoded, _ = changed_images(judge, lambda images: copies(judge, tokenizer, images), "a decoded copy")
    distance = frechet_distance(decoded.pool, judge.reference.moments)
    metrics["decoded_fd"] = metric(f"Decoded {judge.extractor.label('fd')}", distance, len(decoded), "lower")
    curve = _perturbed_distances(bench, tokenizer, found)
    metrics |= _of_perturbation(curve, judge.extractor.label("fd"), min(n, PERTURBED))

    sheets = shown_reconstructions(judge, tokenizer, folder, SUFFIX)
    details = {
        "spec": spec.to_dict(),
        "quantizer": tokenizer.config["quantizer_config"],
        "cost": {
            "parameters": parameters(tokenizer),
            "quantizer_parameters": parameters(tokenizer.quantizer),
            "flops_per_image": flops,
            **training_cost(run),
        },
        "usage": usage_curve(found.usage, SHOWN_CODES),
        "pfd": [
            {"share": share, "n": min(n, PERTURBED), "fd": point.value, "standard_error": point.standard_error}
            for share, point in curve.items()
        ],
        **_inside(tokenizer, torch.cat(kept)[:LATENTS], found.tokens),
        "training": training_course(run, tokenizer),
        "perceptual_sha256": judge.perceptual.sha256,
        **sheets.details,
    }
    return Part(metrics, found.reference.describe(), details, sheets.pictures)


def _perturbed_distances(bench: Bench, tokenizer: Tokenizer, found: Reconstructed) -> dict[float, Estimate]:
    """The distance of the first reconstructions after each share of perturbed positions, none of them first."""
    judge, spec, n = bench.judge, tokenizer.spec, min(PERTURBED, len(found.tokens))

    def images(share: float) -> Iterator[Tensor]:
        for rows in torch.arange(n).split(judge.config.batch_size):
            spoilt = perturbed(found.tokens[rows], spec.sizes, share, rows.tolist())
            yield to_uint8(tokenizer.decode(spoilt.to(judge.device))).cpu()

    pools = {0.0: found.features.pool[:n]}
    for share in bench.config.perturbations:
        pools[share] = extract(images(share), judge.extractor, n, f"{share:.0%} of the positions replaced").pool
    return {share: frechet_distance(pool, found.reference.moments) for share, pool in pools.items()}


def _of_perturbation(curve: dict[float, Estimate], name: str, n: int) -> dict[str, Metric]:
    """`pfd`, the distance at the middle one of the shares, and `pfd_increase`, that minus the distance of the same images at 0.

    The increase is what the spoilt tokens add: of a tokenizer that reconstructs badly, pFD is large without any.
    """
    share = list(curve)[len(curve) // 2]
    words = f"{100 * share:g} % of the positions replaced"
    return {
        "pfd": metric(f"p{name}, {words}", curve[share], n, "lower"),
        "pfd_increase": metric(f"Increase of p{name}, {words}", curve[share].minus(curve[0.0]), n, "lower"),
    }


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
            "standard_error": slope.standard_error,
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
