"""A run's folder: its resolved configuration, the versions that ran it, its statistics, its snapshots, its result.

    runs/demo/tokenizer/
      config.yaml  versions.json  stats.jsonl  snapshots/<images seen>/
      tokenizer/ (or prior/: the finished model; its presence means that the run is done)
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.core.config import read_yaml, to_dict, to_yaml
from pipeline.core.errors import UserError
from pipeline.core.files import naming, write_json, write_text
from pipeline.core.snapshot import snapshots

PACKAGES = (
    *("torch", "torchvision", "accelerate", "diffusers", "transformers", "datasets"),
    *("torch-fidelity", "numpy", "constriction"),
)
# settings that say where and how fast to work, or what to do with the result: they may change when a run goes on
FREE_SETTINGS = (
    *("run", "workers", "report_every", "snapshot_every", "keep_snapshots", "tracker", "micro_batch", "max_bad_steps"),
    "sampling",
)


class RunFolder:
    """The folder of one training run. `path` may exist already: then the run goes on, if its configuration is the same."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.snapshots = self.path / "snapshots"
        self.stats = self.path / "stats.jsonl"

    def open(self, config: Any) -> None:
        """Record the configuration and the versions; UserError where the folder belongs to another configuration.

        A run without a snapshot has nothing to lose: its configuration may be mended.
        """
        file = self.path / "config.yaml"
        if file.exists() and snapshots(self.snapshots):
            changed = _differences(read_yaml(file), to_dict(config))
            if changed:
                raise UserError(
                    f"{self.path}: holds a run of another configuration ({'; '.join(changed[:4])}); "
                    "give another folder with run=…, or delete this one"
                )
        try:
            write_text(file, to_yaml(config))
            write_json(self.path / "versions.json", versions())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); choose another folder with run=…") from None

    def log(self, record: dict[str, Any]) -> None:
        """Append one line of statistics; every record has `images`."""
        with naming(self.stats), open(self.stats, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def rewind(self, images_seen: int) -> None:
        """Drop the statistics after a moment, so that a resumed run's file equals an uninterrupted one's."""
        kept = [record for record in read_stats(self.path) if record["images"] <= images_seen]
        if self.stats.exists():
            write_text(self.stats, "".join(json.dumps(record) + "\n" for record in kept))


def write_origin(folder: Path, config: Any, **facts: Any) -> None:
    """Write a finished model's `training.json`: its resolved configuration, what ran it, and facts of its stage."""
    values = to_dict(config)
    write_json(folder / "training.json", {"run": values.pop("run"), **facts, "config": values, "versions": versions()})


def read_stats(run: Path) -> list[dict[str, Any]]:
    """The records of a run's `stats.jsonl`; a last line cut short by a kill is dropped."""
    file = run / "stats.jsonl"
    records = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


CHANGING = ("LGQ_ASSIGNMENT",)  # variables of the environment that results depend on, by rounding


def versions() -> dict[str, Any]:
    """What ran: packages, Python, platform, device, threads, processes, and the commit of the code (marked if changed)."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {
        "packages": packages,
        "python": sys.version.split()[0],
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "code": code_version(),
        **{name: os.environ[name] for name in CHANGING if os.environ.get(name)},
    }


def code_version() -> str | None:
    """The commit of the code, marked "+changes" where files differ from it; None outside a git checkout."""
    here = Path(__file__).resolve().parent
    try:
        command = ["git", "describe", "--always", "--dirty=+changes", "--abbrev=12"]
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _differences(old: dict[str, Any], new: dict[str, Any], place: str = "") -> list[str]:
    changed = []
    for key in [*old, *(key for key in new if key not in old)]:
        if key in FREE_SETTINGS:
            continue
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changed += _differences(before, after, f"{place}{key}.")
        elif before != after:
            changed.append(f"{place}{key} was {before!r}, now {after!r}")
    return changed
