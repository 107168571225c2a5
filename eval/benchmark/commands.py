"""The command lines of jobs: those that a user would type."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from eval.benchmark.contract import Settings
from eval.benchmark.plan import Kind, PlannedJob
from pipeline.core.measurement import measuring

PROJECT = Path(__file__).resolve().parents[2]


class Commands:
    """Builds the command line of a job; `config` is the benchmark's file, `runs` and `results` its two folders."""

    def __init__(self, settings: Settings, config: Path, runs: Path, results: Path) -> None:
        self.settings, self.config, self.runs, self.results = settings, config, runs, results

    def __call__(self, job: PlannedJob) -> list[str]:
        """The words of a job's command."""
        return [sys.executable, *KINDS[job.kind](self, job)]

    def train_tokenizer(self, job: PlannedJob) -> list[str]:
        """Stage 1."""
        assert job.method is not None and job.bits is not None and job.seed is not None
        settings = self.settings.tokenizer_settings(job.method, job.bits, job.seed)
        script = f"{PROJECT / 'stage1_tokenizer/train.py'}"
        return [script, "--config", self.settings.config.stage1, *settings, f"run={self.runs / job.id}"]

    def tokenize(self, job: PlannedJob) -> list[str]:
        """Encode the data."""
        script = f"{PROJECT / 'pipeline/tokenize_dataset.py'}"
        return [script, "--tokenizer", f"{self.runs / job.needs[0]}", "--out", f"{self.runs / job.id}"]

    def train_prior(self, job: PlannedJob) -> list[str]:
        """Stage 2."""
        assert job.prior is not None and job.seed is not None
        own = [f"run={self.runs / job.id}", f"tokens={self.runs / job.needs[0]}"]
        config = self.settings.config.stage2[job.prior]
        return [f"{PROJECT / 'stage2_prior/train.py'}", "--config", config, *self.settings.prior_settings(job.seed), *own]

    def measure(self, job: PlannedJob) -> list[str]:
        """Measure what the job needs."""
        out = self.results / "jobs" / job.id
        return measuring(self.runs / job.needs[0], out, self.config, job.facts())


KINDS: dict[Kind, Callable[[Commands, PlannedJob], list[str]]] = {
    "tokenizer": Commands.train_tokenizer,
    "tokens": Commands.tokenize,
    "prior": Commands.train_prior,
    "quality": Commands.measure,
    "generation": Commands.measure,
    "yardstick": Commands.measure,
}
