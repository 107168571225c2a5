"""A job's folders: what it left, who works on it, how it ended.

    runs/benchmark/<name>/<id>/            the artifact: a training's run folder, or tokens
    runs/benchmark/<name>/<id>/job/        lock.<number>, log.txt, state.json
    results/benchmark/<name>/jobs/<id>/    of a measurement: result.json, pictures, and job.json: what was asked, what it took
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eval.benchmark.locks import Lock
from eval.benchmark.plan import Job, Kind
from eval.results import FILE
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json

MARKERS: dict[Kind, str] = {"tokenizer": "tokenizer/config.json", "tokens": "store.json", "prior": "prior/config.json"}
KEPT = ("job", "config.yaml", "stats.jsonl", "versions.json")  # of an artifact that is cleaned away
LAST_LINE = 300  # characters


@dataclass
class State:
    """How a job ended last: `seconds` are those of all attempts together, `inputs` what it was made from."""

    state: str = "new"  # new, stopped, failed, done
    attempts: int = 0
    seconds: float = 0.0
    threads: int | None = None  # of all its attempts: with as many a training that goes on ends bitwise the same
    device: str = ""
    error: str = ""
    inputs: dict[str, Any] = field(default_factory=dict)


class JobFolder:
    """Where a job works: `path` its artifact, `out` its result, `inputs` all settings that decide what it makes."""

    def __init__(self, job: Job, inputs: dict[str, Any], runs: Path, results: Path) -> None:
        self.job, self.inputs = job, json.loads(json.dumps(inputs))  # as it will be read again: lists, not tuples
        self.path = runs / job.id
        self.out = results / "jobs" / job.id
        self.log = self.path / "job" / "log.txt"
        self.lock = Lock(self.path / "job")

    def state(self) -> State:
        """How it ended last."""
        file = self.path / "job" / "state.json"
        try:
            return State(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return State()
        except (ValueError, TypeError):
            raise UserError(f"{file}: damaged; delete {self.path} to run {self.job.id} again") from None

    def write_state(self, state: State) -> None:
        """Record how it ended; only the lock's holder may."""
        write_json(self.path / "job" / "state.json", asdict(state))

    def done(self) -> bool:
        """Whether what it makes is there, made from the same inputs.

        Raises UserError where an artifact of other inputs is in the way: a training is never thrown away unasked.
        """
        if self.job.is_measurement:
            return self._measured() and differences(read_json(self.out / "job.json")["inputs"], self.inputs) == []
        state = self.state()
        if state.state != "done" or not (self.path / MARKERS[self.job.kind]).exists():
            return False
        changed = differences(state.inputs, self.inputs)
        if changed:
            raise UserError(
                f"{self.path}: was made with other settings ({'; '.join(changed[:3])}); "
                "give the benchmark another name, or delete this folder"
            )
        return True

    def outdated(self) -> list[str]:
        """How the settings of the measurement that is there differ from the present ones; it will be measured again."""
        return differences(read_json(self.out / "job.json")["inputs"], self.inputs) if self._measured() else []

    def prepare(self) -> None:
        """Before a job starts: say what it is made from; of a measurement take away an old result of other inputs."""
        if self.job.is_measurement:
            if not self._measured() or self.outdated():
                (self.out / FILE).unlink(missing_ok=True)
            write_json(self.out / "job.json", {"job": self.job.facts(), "inputs": self.inputs})

    def made(self) -> bool:
        """Whether the file is there that says that the job's command has finished."""
        return (self.out / FILE if self.job.is_measurement else self.path / MARKERS[self.job.kind]).exists()

    def clean(self) -> None:
        """Delete the artifact, keep its settings, statistics and log."""
        for entry in self.path.iterdir() if self.path.exists() else []:
            if entry.name not in KEPT:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def last_line(self) -> str:
        """The last thing that its command said, progress bars left out."""
        return next((line for line in reversed(self._tail()) if not PROGRESS.search(line)), "")[:LAST_LINE]

    def progress(self) -> str:
        """The newest line of a progress bar."""
        return next((line for line in reversed(self._tail()) if PROGRESS.search(line)), "")

    def _measured(self) -> bool:
        try:
            result = json.loads((self.out / FILE).read_text(encoding="utf-8"))
            asked = json.loads((self.out / "job.json").read_text(encoding="utf-8"))
            return "inputs" in result and "inputs" in asked
        except (OSError, ValueError):
            return False

    def _tail(self, size: int = 4096) -> list[str]:
        try:
            with open(self.log, "rb") as file:
                file.seek(max(0, file.seek(0, 2) - size))
                text = file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return []
        return [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]


PROGRESS = re.compile(r"\d+%\|")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], place: str = "") -> list[str]:
    """Where two sets of inputs differ, one line each.

    A setting that only one of them has came or went with the code, and is no difference: results of a long benchmark survive
    a project that grows.
    """
    changed: list[str] = []
    for key in old.keys() & new.keys():
        before, after = old[key], new[key]
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changed += differences(before, after, f"{place}{key}.")
        elif before != after:
            changed.append(f"{place}{key} was {before!r}, now {after!r}")
    return sorted(changed)
