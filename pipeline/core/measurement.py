"""The command that measures one job of a benchmark: the benchmark starts it, and so does who makes its result again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MEASURED_FROM = {"yardstick": "--data-from", "quality": "--tokenizer", "generation": "--prior"}  # kind -> what the run is


def measuring(run: Path, out: Path, config: Path, facts: Mapping[str, Any]) -> list[str]:
    """The words, from `-m` on, that measure a run for the job of a benchmark that these facts describe."""
    kind = facts["kind"]
    module = ["-m", "eval.benchmark.measure", kind, MEASURED_FROM[kind], f"{run}", "--out", f"{out}", "--config", f"{config}"]
    return module if facts.get("method") is None else [*module, "--job", json.dumps(facts)]
