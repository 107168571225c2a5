"""A job's folders: what it left, who works on it, how it ended.

runs/benchmark/<name>/<id>/            the artifact: a training's run folder, or tokens
runs/benchmark/<name>/<id>/job/        lock.<number>, log.txt, state.json
results/benchmark/<name>/jobs/<id>/    of a measurement: result.json, pictures, and job.json: what was asked, what it took
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from eval.benchmark.locks import Lock
from eval.benchmark.plan import Kind, PlannedJob
from eval.results import FILE
from pipeline.core.files import write_json

MARKERS: dict[Kind, str] = {"tokenizer": "tokenizer/config.json", "tokens": "store.json", "prior": "prior/config.json"}
KEPT = ("job", "config.yaml", "stats.jsonl", "versions.json")  # of an artifact that is cleaned away
LAST_LINE = 300  # characters
VERSIONLESS = {"version": 0, "features_version": 0}  # what inputs from before there were versions stand for


@dataclass
class State:
    """How a job ended last: `seconds` are those of all attempts together, `inputs` what it was made from.

    peak_mb: the most resident host memory of an attempt in MB, of the largest of its processes (not of all together, and not
    of a GPU); at least the launcher's own, since a child starts as its copy.
    """

    state: str = "new"  # new, running, stopped, failed, done; damaged: what is written cannot be read
    attempts: int = 0
    seconds: float = 0.0
    peak_mb: float | None = None
    threads: int | None = None  # of all its attempts: with as many a training that goes on ends bitwise the same
    device: str = ""
    error: str = ""
    inputs: dict[str, Any] = field(default_factory=dict)


class JobFolder:
    """Where a job works: `path` its artifact, `out` its result, `inputs` all settings that decide what it makes."""

    def __init__(self, job: PlannedJob, inputs: dict[str, Any], runs: Path, results: Path) -> None:
        self.job, self.inputs = job, json.loads(json.dumps(inputs))  # as it will be read again: lists, not tuples
        self.path = runs / job.id
        tokenizer = next((id for id in (job.id, *job.needs) if id.startswith("tokenizer/")), None)
        self.training = None if tokenizer is None else runs / tokenizer / "tokenizer/training.json"
        self.out = results / "jobs" / job.id
        self.log = self.path / "job" / "log.txt"
        self.lock = Lock(self.path / "job")

    def state(self) -> State:
        """How it ended last."""
        file = self.path / "job" / "state.json"
        try:
            values = dict[str, Any](json.loads(file.read_text(encoding="utf-8")))
            known = {field.name for field in fields(State)}  # newer code may have written more
            state = State(**{name: value for name, value in values.items() if name in known})
            if values and state.attempts >= 0 and state.seconds >= 0 and isinstance(state.inputs, dict):
                return state
        except FileNotFoundError:
            return State()
        except (ValueError, TypeError):
            pass
        return State("damaged", error=f"{file}: damaged; delete this file and start again, which keeps what the job has made")

    def write_state(self, state: State) -> None:
        """Record how it ended; only the lock's holder may."""
        write_json(self.path / "job" / "state.json", asdict(state))

    def done(self) -> bool:
        """Whether what it makes is there, made from the same inputs."""
        if self.job.is_measurement:
            measured = self.measured()
            return measured is not None and not differences(measured, self._present())
        state = self.state()
        return state.state == "done" and self.made() and not differences(state.inputs, self.inputs)

    def obstacle(self, state: State) -> str:
        """Why the job cannot be done, with the remedy: an artifact of other inputs is in the way, or the state is damaged.

        "" where it can. A training is never thrown away unasked.
        """
        if state.state == "damaged":
            return state.error
        if self.job.is_measurement or not (self.made() or any(self.path.glob("snapshots/[0-9]*"))):
            return ""
        changed = differences(state.inputs, self.inputs)
        changed = [text for text in changed if not text.startswith("given")] or changed  # what was given is in the rest, too
        remedy = "give the benchmark another name (name=...), or delete this folder"
        return f"{self.path}: was made with other settings ({'; '.join(changed[:3])}); {remedy}" if changed else ""

    def outdated(self) -> list[str]:
        """How the inputs of the measurement that is there differ from the present ones; it will be measured again."""
        measured = self.measured()
        return [] if measured is None else differences(measured, self._present())

    def fingerprint(self) -> str | None:
        """Of the images that its tokenizer was trained on; None where neither that nor a measurement is there to tell."""
        try:
            return str(json.loads(self.training.read_text(encoding="utf-8"))["data_fingerprint"]) if self.training else None
        except (OSError, ValueError, KeyError, TypeError):
            return (self.measured() or {}).get("data_fingerprint")

    def prepare(self) -> None:
        """Before a job starts: say what it is made from; of a measurement take away an old result of other inputs."""
        if self.job.is_measurement:
            if not self.done():
                (self.out / FILE).unlink(missing_ok=True)
            write_json(self.out / "job.json", {"job": self.job.facts(), "inputs": self._present()})

    def made(self) -> bool:
        """Whether the file is there that says that the job's command has finished."""
        return (self.out / FILE if self.job.is_measurement else self.path / MARKERS[self.job.kind]).exists()

    def clean(self) -> None:
        """Delete the artifact, keep its settings, statistics and log; only the lock's holder may.

        What says that it is whole goes first, and every part is renamed before it is deleted: where this is killed, or NFS
        keeps a file that is open somewhere, nothing half deleted passes for an artifact or a snapshot.
        """
        (self.path / MARKERS[self.job.kind]).unlink(missing_ok=True)
        for entry in self.leavings():
            aside = entry.with_name(f".{uuid.uuid4().hex}.cleaned")
            os.replace(entry, aside)
            if aside.is_dir():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                aside.unlink(missing_ok=True)

    def leavings(self) -> list[Path]:
        """What `clean` would delete."""
        return [entry for entry in self.path.iterdir() if entry.name not in KEPT] if self.path.exists() else []

    def last_line(self) -> str:
        """The last thing that its command said, progress bars left out."""
        return next((line for line in reversed(self._tail()) if not PROGRESS.search(line)), "")[:LAST_LINE]

    def progress(self) -> str:
        """The newest line of a progress bar."""
        return next((line for line in reversed(self._tail()) if PROGRESS.search(line)), "")

    def costs(self) -> dict[str, float]:
        """Seconds by job that are written beside a measurement."""
        seconds = self._told().get("seconds")
        return seconds if isinstance(seconds, dict) else {}

    def measured(self) -> dict[str, Any] | None:
        """The inputs of the measurement that is there; None where there is none, or only a damaged one."""
        try:
            whole = "inputs" in json.loads((self.out / FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            return None
        inputs = self._told().get("inputs")
        return inputs if whole and isinstance(inputs, dict) else None

    def write_costs(self, **costs: Mapping[str, float]) -> None:
        """Add to what is written beside a measurement: seconds and the like, each by job."""
        write_json(self.out / "job.json", self._told() | costs)

    def _told(self) -> dict[str, Any]:
        try:
            told = json.loads((self.out / "job.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return told if isinstance(told, dict) else {}

    def _present(self) -> dict[str, Any]:
        """The inputs of a measurement, with the images that its tokenizer was trained on where it is there."""
        fingerprint = self.fingerprint()
        return self.inputs | ({"data_fingerprint": fingerprint} if fingerprint else {})

    def _tail(self, size: int = 4096) -> list[str]:
        try:
            with open(self.log, "rb") as file:
                file.seek(max(0, file.seek(0, 2) - size))
                text = file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return []
        return [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]


PROGRESS = re.compile(r"\d+%\|")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Where two sets of inputs differ, one line each.

    A setting that only one of them has came or went with the code, and is no difference: results of a long benchmark survive
    a project that grows. Versions are none: one that is missing is 0.
    """
    return _differences(VERSIONLESS | dict(old), VERSIONLESS | dict(new), "")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], place: str) -> list[str]:
    changed: list[str] = []
    for key in old.keys() & new.keys():
        before, after = old[key], new[key]
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changed += _differences(before, after, f"{place}{key}.")
        elif before != after:
            changed.append(f"{place}{key} was {before!r}, now {after!r}")
    return sorted(changed)
