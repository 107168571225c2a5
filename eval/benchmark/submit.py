"""Launchers as an array of SLURM tasks, through submitit: each works on the shared folders with one slot."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eval.benchmark.benchmark import BenchmarkRun
from eval.benchmark.config import BenchmarkConfig
from pipeline.core.errors import UserError

IDLE = 1800.0  # seconds after which a task without work gives its GPU back


@dataclass(frozen=True)
class Task:
    """What every task of the array does: the launcher, with one slot."""

    config: BenchmarkConfig
    runs: Path
    results: Path
    threads: int | None
    clean: bool

    def __call__(self) -> None:
        BenchmarkRun(self.config, self.runs, self.results, jobs=1, threads=self.threads).run(self.clean, leave_after=IDLE)


def submit(task: Task, number: int, options: Sequence[str], cluster: str = "slurm") -> list[str]:
    """Submit an array of that many tasks; gives their ids. submitit's logs go beside the runs.

    options: key=value of submitit's own parameters, as in `slurm_partition=gpu`. cluster: "local" starts the tasks as processes
    of this machine, to try it. Near its time limit a task's training writes a snapshot; any start goes on from there. Raises
    UserError where submitit is not installed or refuses an option. NOT RUN on a cluster: submitit itself checks options,
    and a stored task was loaded by submitit and did its work, but no array was seen to its end.
    """
    try:
        submitit: Any = importlib.import_module("submitit")
    except ImportError:
        raise UserError("--submit: needs submitit, which is not installed; pip install submitit") from None
    parameters = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"--slurm {option}: write key=value, for example slurm_partition=gpu")
        parameters[key] = yaml.safe_load(value)
    try:
        executor = submitit.AutoExecutor(folder=str(task.runs / task.config.name / "submitit"), cluster=cluster)
        executor.update_parameters(name=f"benchmark-{task.config.name}", **parameters)
    except (NameError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"--submit: {' '.join(str(error).split())}") from None
    with executor.batch():
        jobs = [executor.submit(task) for _ in range(number)]
    if cluster == "local":
        for job in jobs:
            job.wait()  # such tasks end with the process that submitted them
    return [str(job.job_id) for job in jobs]
