"""Running a part of an evaluation once, and recording what it found with everything that decides its numbers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from eval.config import EvalConfig
from eval.features import VERSION
from eval.judge import Judge
from eval.parts import SAMPLING, Part
from eval.results import FILE, Result, is_finished, write_result
from pipeline.api import prior_folder, tokenizer_folder
from pipeline.core.config import to_dict
from pipeline.core.files import read_json
from pipeline.core.run_folder import versions
from pipeline.core.token_store import read_identity

NOT_DECISIVE = {"weights", *SAMPLING.values()}  # of the configuration: the extractor and a part's own inputs say them


class Recorder:
    """Runs parts and writes their results below `out`, or skips those whose result is there already."""

    def __init__(self, out: Path, judge: Judge) -> None:
        self.out, self.judge = out, judge

    def part(
        self,
        folder: str,
        name: str,
        kind: str,
        inputs: dict[str, Any],
        measure: Callable[[Path], Part],
        recipe: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Measure into a folder, unless it holds the result of the same inputs: these and what the judge compares with."""
        place = self.out / folder
        inputs = {
            "version": VERSION,
            "data_fingerprint": self.judge.data.fingerprint,
            "extractor": self.judge.extractor.describe(),
            "config": {name: value for name, value in to_dict(self.judge.config).items() if name not in NOT_DECISIVE},
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
            recipe=dict(recipe),
            details=found.details,
            pictures=found.pictures,
        )
        write_result(place, result)


def recipe(config: EvalConfig, tokenizer: Path, weights: str) -> dict[str, Any]:
    """What it takes to make an evaluation of a tokenizer again from the images: the settings of its training, and its own.

    `tokenizer`: the folder of a run or of a model, `weights` their sha256; one that does not say how it was trained (of before,
    of elsewhere) has no settings here.
    """
    return {"tokenizer": _trained(tokenizer_folder(tokenizer), weights), "evaluation": to_dict(config)}


def prior_recipe(prior: Path, weights: str) -> dict[str, Any]:
    """The same of a prior: the settings of its tokens and of its training."""
    folder = prior_folder(prior)
    identity = read_identity(folder / "tokens.json")
    tokens = {name: getattr(identity, name) for name in ("data", "mirrored", "shard_images", "precision")}
    return {"tokens": tokens, "prior": _trained(folder, weights)}


def _trained(folder: Path, weights: str) -> dict[str, Any]:
    """How a model was trained, and the hash of its weights."""
    origin = read_json(folder / "training.json") if (folder / "training.json").exists() else {}
    known = {name: origin[name] for name in ("data", "config", "versions") if name in origin}
    return {**known, "weights_sha256": weights}
