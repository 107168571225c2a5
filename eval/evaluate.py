"""The evaluation of a tokenizer and its priors, part by part; a part that is finished with the same inputs is skipped.

    OUT/real/ OUT/validation/      yardsticks: training images that are not in the reference, validation images
    OUT/blurred/ OUT/decoded/      yardsticks: the former blurred, and after the tokenizer
    OUT/reconstruction/            the tokenizer
    OUT/<prior's run>/             each prior
Every folder holds a result.json and the pictures it names.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from eval.config import EvalConfig, Sampling
from eval.features import VERSION
from eval.judge import Judge
from eval.parts import Part, blurred_copy, decoded_copy, generation, real_images, reconstruction, validation_images
from eval.results import FILE, Result, is_finished, read_result, write_result
from pipeline.api import (
    ImageGenerator,
    find_runs,
    load_data,
    load_pipeline,
    load_tokenizer,
    prior_folder,
    tokenizer_folder,
    weights_sha256,
)
from pipeline.core.config import to_dict
from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.core.run_folder import versions

# where the configuration keeps a prior's options
SAMPLING = {"MaskGITPrior": "maskgit", "AutoregressivePrior": "ar", "NextScalePrior": "var"}


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
    generators = {name: load_pipeline(prior) for name, prior in _named(priors).items()}
    origin = read_json(tokenizer_folder(path) / "training.json")
    data = load_data(**origin["data"])
    if data.fingerprint != origin["data_fingerprint"]:
        raise UserError(f"{path}: its images have changed since it was trained; restore them or train it again")
    hashes = {"tokenizer": weights_sha256(tokenizer_folder(path))}
    hashes |= {name: weights_sha256(prior_folder(prior)) for name, prior in _named(priors).items()}
    for prior in priors:
        used = read_json(prior_folder(prior) / "tokens.json")["tokenizer_sha256"]
        if used != hashes["tokenizer"]:
            raise UserError(f"{prior}: learned the tokens of tokenizer {used[:12]}, not of {path} ({hashes['tokenizer'][:12]})")
    options = {name: _sampling(model, request.config) for name, model in generators.items()}
    if dry_run:
        print(f"{path}: {tokenizer.spec}\n" + "\n".join(f"{name}: {option}" for name, option in options.items()))
        print(f"{request.config}\n-> {out}")
        return
    judge = Judge(data, tokenizer.spec.image_size[0], request.config, device)
    tokenizer.to(device)  # pyright: ignore[reportArgumentType]

    run = _Runner(out, judge)
    run.part("real", "Training images", "yardstick", {}, lambda folder: real_images(judge, folder))
    run.part("validation", "Validation images", "yardstick", {}, lambda folder: validation_images(judge))
    run.part("blurred", "Blurred copy", "yardstick", {}, lambda folder: blurred_copy(judge))
    floor = read_result(out / "real" / FILE).metrics
    inputs: dict[str, Any] = {"tokenizer_sha256": hashes["tokenizer"]}
    run.part("reconstruction", path.name, "reconstruction", inputs, lambda folder: reconstruction(judge, tokenizer, folder))
    run.part("decoded", "Decoded copy", "yardstick", inputs, lambda folder: decoded_copy(judge, tokenizer))
    for name, model in generators.items():
        model.to(device)
        inputs = {"prior_sha256": hashes[name], "tokenizer_sha256": hashes["tokenizer"]}
        inputs |= {"sampling": dataclasses.asdict(options[name])}
        measure = lambda folder: generation(judge, model, options[name], floor, folder)  # noqa: B023, E731
        run.part(name, name, "generation", inputs, measure)
    print(f"{out}: evaluated; python -m eval.report {out.parent} makes a page of it")


class _Runner:
    """Runs parts, or skips them where their result is there already."""

    def __init__(self, out: Path, judge: Judge) -> None:
        self.out, self.judge = out, judge

    def part(self, folder: str, name: str, kind: str, inputs: dict[str, Any], measure: Callable[[Path], Part]) -> None:
        place = self.out / folder
        inputs = {
            "version": VERSION,
            "data_fingerprint": self.judge.data.fingerprint,
            "extractor": self.judge.extractor.describe(),
            "config": to_dict(replace(self.judge.config, weights=None, maskgit=Sampling(), ar=Sampling(), var=Sampling())),
            **inputs,
        }
        inputs = json.loads(json.dumps(inputs))  # as they will be read: lists for tuples
        if is_finished(place, inputs):
            print(f"{place}: finished before")
            return
        (place / FILE).unlink(missing_ok=True)
        started, clock = datetime.now(UTC), time.monotonic()
        found = measure(place)
        result = Result(
            name=name,
            part=kind,
            metrics=found.metrics,
            extractor=self.judge.extractor.describe(),
            reference=found.reference,
            inputs=inputs,
            versions=versions(),
            command=[Path(sys.argv[0]).name, *sys.argv[1:]],
            started=started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - clock, 1),
            details=found.details,
            pictures=found.pictures,
        )
        write_result(place, result)


def _sampling(model: ImageGenerator, config: EvalConfig) -> Any:
    return model.options(**dataclasses.asdict(getattr(config, SAMPLING[type(model.prior).__name__])))


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
