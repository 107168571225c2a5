"""The evaluation of a tokenizer and its priors, part by part; a part that is finished with the same inputs is skipped.

    OUT/real/ OUT/validation/      yardsticks: training images that are not in the reference, validation images
    OUT/blurred/ OUT/decoded/      yardsticks: the former blurred, and after the tokenizer
    OUT/reconstruction/            the tokenizer
    OUT/<prior's run>/             each prior
Every folder holds a result.json and the pictures it names.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eval.config import EvalConfig
from eval.judge import Judge, training_data
from eval.parts import (
    blurred_copy,
    decoded_copy,
    generation,
    real_images,
    reconstruction,
    sampling_options,
    validation_images,
)
from eval.recording import Recorder, prior_recipe, recipe
from eval.results import FILE, read_result
from pipeline.api import (
    find_runs,
    load_pipeline,
    load_tokenizer,
    prior_folder,
    tokenizer_folder,
    weights_sha256,
)
from pipeline.core.errors import UserError
from pipeline.core.files import read_json


@dataclass(frozen=True)
class Request:
    """What to evaluate; None stands for what the last command left."""

    tokenizer: Path | None
    priors: list[Path] | None
    out: Path | None
    config: EvalConfig


def evaluate(request: Request, dry_run: bool = False) -> None:
    """Evaluate the tokenizer and every prior, and print where the results are."""
    torch.set_flush_denormal(True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = request.tokenizer or _newest("tokenizer")
    priors = _beside(path) if request.priors is None else request.priors
    out = request.out or path.parent / "eval"
    tokenizer = load_tokenizer(path)
    runs = _named(priors)
    generators = {name: load_pipeline(prior) for name, prior in runs.items()}
    data = training_data(path)
    hashes = {"tokenizer": weights_sha256(tokenizer_folder(path))}
    hashes |= {name: weights_sha256(prior_folder(prior)) for name, prior in runs.items()}
    for prior in priors:
        used = read_json(prior_folder(prior) / "tokens.json")["tokenizer_sha256"]
        if used != hashes["tokenizer"]:
            raise UserError(f"{prior}: learned the tokens of tokenizer {used[:12]}, not of {path} ({hashes['tokenizer'][:12]})")
    options = {name: sampling_options(model, request.config) for name, model in generators.items()}
    if dry_run:
        print(f"{path}: {tokenizer.spec}\n" + "\n".join(f"{name}: {option}" for name, option in options.items()))
        print(f"{request.config}\n-> {out}")
        return
    judge = Judge(data, tokenizer.spec.image_size[0], request.config, device)
    tokenizer.to(device)  # pyright: ignore[reportArgumentType]

    recorder = Recorder(out, judge)
    made = recipe(request.config, path, hashes["tokenizer"])
    recorder.part("real", "Training images", "yardstick", {}, lambda folder: real_images(judge, folder), made)
    recorder.part("validation", "Validation images", "yardstick", {}, lambda folder: validation_images(judge), made)
    recorder.part("blurred", "Blurred copy", "yardstick", {}, lambda folder: blurred_copy(judge), made)
    floor = read_result(out / "real" / FILE).metrics
    inputs: dict[str, Any] = {"tokenizer_sha256": hashes["tokenizer"]}
    measure = lambda folder: reconstruction(judge, tokenizer, folder)  # noqa: E731
    recorder.part("reconstruction", path.name, "reconstruction", inputs, measure, made)
    recorder.part("decoded", "Decoded copy", "yardstick", inputs, lambda folder: decoded_copy(judge, tokenizer), made)
    for name, model in generators.items():
        model.to(device)
        inputs = {"prior_sha256": hashes[name], "tokenizer_sha256": hashes["tokenizer"]}
        inputs |= {"sampling": dataclasses.asdict(options[name])}
        measure = lambda folder: generation(judge, model, options[name], floor, folder)  # noqa: B023, E731
        recorder.part(name, name, "generation", inputs, measure, made | prior_recipe(runs[name], hashes[name]))
    print(f"{out}: evaluated; python -m eval.report {out.parent} makes a page of it")


def _named(priors: list[Path]) -> dict[str, Path]:
    """Priors by the names of their folders, with the parent's where two are equal."""
    names = [prior.name for prior in priors]
    unique = [prior.name if names.count(prior.name) == 1 else f"{prior.parent.name}-{prior.name}" for prior in priors]
    taken = {"real", "validation", "blurred", "decoded", "reconstruction"}
    if len(set(unique)) < len(unique) or taken & set(unique):
        raise UserError(f"--priors: {', '.join(unique)}; give folders of different names, none of {', '.join(sorted(taken))}")
    return dict(zip(unique, priors, strict=True))


def _newest(part: str) -> Path:
    runs = find_runs("runs", part)
    if not runs:
        raise UserError(f"runs: no finished {part}; run `make demo`, or train one")
    return runs[0]


def _beside(tokenizer: Path) -> list[Path]:
    """The finished priors that learned this tokenizer's tokens, the newest of each name."""
    own = weights_sha256(tokenizer_folder(tokenizer))
    found: dict[str, Path] = {}
    for run in find_runs("runs", "prior"):
        if read_json(prior_folder(run) / "tokens.json")["tokenizer_sha256"] == own:
            found.setdefault(run.name, run)
    return list(found.values())
