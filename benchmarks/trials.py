"""Trainings that are compared: equal but for the changes of each row, in processes of one thread, their rows in one file."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.command import Interrupted, Interruption
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.core.progress import progress_bar
from pipeline.core.run_folder import read_stats

ROOT = Path(__file__).resolve().parents[1]
# a picture's L1 alone, and the quantizer's own losses: what differs is the quantizer
SHARED = ("snapshot_every=1_000_000_000", "report_every=160", "loss.perceptual=none", "loss.gan_weight=0", "workers=0")


@dataclass(frozen=True)
class Trial:
    """A row of the result: `changes` on top of the settings of all."""

    name: str
    changes: tuple[str, ...]
    seed: int


class Training:
    """A trial that runs in a process of its own, its output in a file beside its folder."""

    def __init__(self, trial: Trial, config: str, settings: list[str], runs: Path) -> None:
        self.trial = trial
        self.run = runs / f"{trial.name.replace(' ', '_')}_{trial.seed}"
        self.out, self.log = (self.run.with_name(f"{self.run.name}.{ending}") for ending in ("json", "log"))
        runs.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.trial", "--config", config, "--out", str(self.out.resolve())]
        own = [f"run={self.run.resolve()}", f"seed={trial.seed}"]
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [*command, *settings, *trial.changes, *own],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def images_seen(self) -> int:
        stats = read_stats(self.run)
        return stats[-1]["images"] if stats else 0

    def row(self) -> dict[str, Any]:
        """What it measured, or the last line of what it said."""
        row = {"name": self.trial.name, "changes": list(self.trial.changes), "seed": self.trial.seed}
        if self.process.returncode == 0:
            return row | read_json(self.out)
        said = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        return row | {"error": next((line for line in reversed(said) if line.strip()), f"exit {self.process.returncode}")}


def run_trials(trials: list[Trial], config: str, images: int, out: Path, jobs: int) -> dict[str, Any]:
    """Train and measure the trials that the result file lacks or that failed, `jobs` at a time; gives the whole result.

    Their folders are in runs/, under the result's name. Raises UserError where the file has rows of another budget.
    """
    settings = [f"images={images}", *SHARED]
    budget = {"config": config, "settings": settings, "jobs": jobs}
    result = read_json(out) if out.exists() else {**budget, "rows": []}
    if [result["config"], result["settings"]] != [config, settings]:
        raise UserError(f"{out}: holds rows of other settings ({' '.join(result['settings'])}); give another --out")
    rows = {(row["name"], row["seed"]): row for row in result["rows"]}
    known = {key for key, row in rows.items() if "error" not in row}
    waiting = [trial for trial in trials if (trial.name, trial.seed) not in known]
    interruption, running, seen = Interruption(), list[Training](), 0
    width = max((len(trial.name) for trial in trials), default=0)
    bar = progress_bar(len(waiting) * images, out.stem)
    try:
        while (waiting or running) and not interruption.signal_number:
            while waiting and len(running) < jobs:
                running.append(Training(waiting.pop(0), config, settings, Path("runs") / out.stem))
            time.sleep(0.5)
            for training in [training for training in running if training.process.poll() is not None]:
                running.remove(training)
                row = training.row()
                rows[row["name"], row["seed"]] = row
                result |= budget | {"versions": row.pop("versions", result.get("versions")), "rows": list(rows.values())}
                write_json(out, result)
                bar.write(f"{row['name']:{width}s}  seed {row['seed']}  {summary(row)}")
                seen += images
            bar.update(seen + sum(training.images_seen() for training in running) - bar.n)
    finally:
        bar.close()
        for training in running:
            training.process.terminate()
        for training in running:
            training.process.wait()
    if interruption.signal_number:
        raise Interrupted(interruption.signal_number)
    return result


def summary(row: dict[str, Any]) -> str:
    """A row in one line."""
    if "error" in row:
        return f"FAILED: {row['error']}"
    return f"PSNR {row['psnr']:.2f} ± {row['psnr_error']:.2f} dB  {row['codes_used']:.1%} of codes used"
