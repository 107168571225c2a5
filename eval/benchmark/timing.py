"""What trainings cost on this machine before any has run: the very commands, cut to a few steps, on generated pictures.

Each runs twice, the second time with twice as many steps: the difference is what steps cost, and the rest is the start. What
reading a real data set costs beyond that is not in it.

    runs/benchmark/NAME/step_times.json     {"trainings": {job's id: {"start": s, "per_image": s, "seconds": s}}, "device": …}
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eval.benchmark.commands import Commands
from eval.benchmark.contract import Settings
from eval.benchmark.launcher import Slots
from eval.benchmark.plan import PlannedJob
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.core.run_folder import versions

FILE = "step_times.json"
PICTURES_PER_CLASS = 24  # of ten classes
NEVER = 10**12  # images


class StepTimer:
    """Times the trainings of a benchmark; `say` tells how it goes."""

    def __init__(self, settings: Settings, config: Path, slots: Slots, steps: int, say: Callable[[str], None]) -> None:
        self.settings, self.config, self.slots, self.steps, self.say = settings, config, slots, steps, say

    def time(self, jobs: Mapping[str, PlannedJob]) -> dict[str, dict[str, float]]:
        """Seconds of every method's and budget's trainings with the first seed, by their ids. UserError where one fails."""
        chosen = [job for job in jobs.values() if job.seed == self.settings.config.seeds[0]]
        found: dict[str, dict[str, float]] = {}
        for tokenizer in (job for job in chosen if job.kind == "tokenizer"):
            tokens = next(job for job in chosen if job.kind == "tokens" and job.needs == (tokenizer.id,))
            with TemporaryDirectory() as folder:
                short, long = Path(folder, "short"), Path(folder, "long")
                found[tokenizer.id] = self._twice(tokenizer, short, long)
                priors = [job for job in chosen if job.kind == "prior" and job.needs == (tokens.id,)]
                if priors:
                    self._run(tokens, short)
                    (long / tokens.id).parent.mkdir(exist_ok=True)
                    (long / tokens.id).symlink_to(short / tokens.id)
                for prior in priors:
                    found[prior.id] = self._twice(prior, short, long)
        return found

    def _twice(self, job: PlannedJob, short: Path, long: Path) -> dict[str, float]:
        """A training's seconds, by one of `steps` steps and one of twice as many."""
        assert job.method is not None and job.bits is not None and job.seed is not None
        if job.prior is None:
            config = self.settings.stage1[job.method.label, job.bits, job.seed]
            size = config.image_size
            own = ["data=shapes", f"data.image_size={size}", f"data.train_per_class={PICTURES_PER_CLASS}"]
        else:
            config = self.settings.stage2[job.prior, job.seed]
            own = [f"validate_every={NEVER}", f"validation_images={config.batch_size}"]
        own += ["optim.warmup=0", f"report_every={NEVER}", f"snapshot_every={NEVER}"]
        images = self.steps * config.batch_size
        once = self._run(job, short, *own, f"images={images}")
        twice = self._run(job, long, *own, f"images={2 * images}")
        per_image = max(0.0, twice - once) / images
        start = max(0.0, once - per_image * images)
        self.say(f"{job.id}: {1000 * per_image:.3g} ms an image, {start:.3g} s to start")
        return {"start": start, "per_image": per_image, "seconds": start + per_image * config.images}

    def _run(self, job: PlannedJob, runs: Path, *settings: str) -> float:
        """Seconds of a job's command with other settings."""
        words = [*Commands(self.settings, self.config, runs, runs)(job), *settings]
        environment = os.environ | {"OMP_NUM_THREADS": str(self.slots.threads)}
        environment |= {"CUDA_VISIBLE_DEVICES": self.slots.devices[0]} if self.slots.devices else {}
        started = time.monotonic()
        result = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            said = (result.stderr.strip().splitlines() or ["nothing"])[-1]
            raise UserError(f"{job.id}: could not be timed (exit code {result.returncode}): {said}")
        return time.monotonic() - started


def write_step_times(folder: Path, found: Mapping[str, Mapping[str, float]]) -> None:
    """Add what was timed to a benchmark's folder."""
    write_json(folder / FILE, {**versions(), "trainings": {**_trainings(folder), **found}})


def read_step_times(folder: Path) -> dict[str, float]:
    """Seconds of whole trainings, by the ids of their jobs; empty where none was timed."""
    return {id: float(times["seconds"]) for id, times in _trainings(folder).items()}


def _trainings(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    try:
        return dict(read_json(path)["trainings"]) if path.exists() else {}
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: damaged; delete it, and time the steps again") from None
