"""A benchmark as a whole: its contract, its plan, and one launcher that works on it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch

from eval.benchmark.commands import Commands
from eval.benchmark.config import BenchmarkConfig
from eval.benchmark.contract import Settings, contract, text, write_contract
from eval.benchmark.estimate import Costs, estimate
from eval.benchmark.jobs import JobFolder
from eval.benchmark.launcher import Launcher, Slots
from eval.benchmark.plan import Job, all_jobs, wanted
from eval.benchmark.table import Table
from pipeline.core.config import to_yaml
from pipeline.core.errors import UserError
from pipeline.core.files import write_text


class Benchmark:
    """What one command works on; `runs` and `results` are the folders of all benchmarks.

    Raises UserError where the configurations do not resolve.
    """

    def __init__(
        self, config: BenchmarkConfig, runs: Path, results: Path, jobs: int | None = None, threads: int | None = None
    ) -> None:
        self.config = config
        self.runs, self.results = runs / config.name, results / config.name
        self.settings = Settings(config)
        self.contract = contract(self.settings)
        self.jobs = all_jobs(config)
        self.folders = {
            id: JobFolder(job, self.settings.inputs(job), self.runs, self.results) for id, job in self.jobs.items()
        }
        self.slots = slots(jobs, threads)
        self.costs = Costs(self.jobs, config.assumed_seconds)
        self.costs.read(self.folders)

    def wanted(self) -> dict[str, Job]:
        """The jobs that are left. Raises UserError where an artifact of other settings is in the way."""
        measured = {id for id, job in self.jobs.items() if job.is_measurement and self.folders[id].done()}
        needed = wanted(self.jobs, measured)
        made = {id for id, job in needed.items() if not job.is_measurement and self.folders[id].done()}
        return wanted(self.jobs, measured | made)

    def describe(self) -> str:
        """The contract, the plan and what it costs."""
        left = self.wanted()
        leaves = [id for id, job in self.jobs.items() if job.is_measurement]
        measured = sum(id not in left for id in leaves)
        lines = [text(self.contract, self.config.tolerance), f"Plan: {measured} of {len(leaves)} measurements are there"]
        outdated = [id for id in leaves if self.folders[id].outdated()]
        if outdated:
            why = "; ".join(self.folders[outdated[0]].outdated()[:2])
            lines[-1] += f"; {len(outdated)} more are of other settings and will be measured again ({outdated[0]}: {why})"
        if left:
            lines += ["Left:", estimate(left.values(), self.costs, self.slots.count, bool(self.slots.devices))]
        return "\n".join(lines)

    def run(self, clean: bool = False, leave_after: float | None = None) -> None:
        """Work until nothing is left to do here. Raises UserError at the end where jobs failed."""
        if self.contract.violations:
            raise UserError(f"{self.config.name}: not a fair comparison: {self.contract.violations[0]}; nothing was started")
        write_contract(self.contract, self.results)
        table = Table(self.config.name, self.jobs, self.folders, self.costs, self.slots.count)
        command = Commands(self.settings, self._resolved(), self.runs, self.results)
        standing = Launcher(self.jobs, self.folders, command, self.slots, table, clean, leave_after).run()
        if standing.failed:
            first, said = next(iter(standing.failed.items()))
            raise UserError(
                f"{self.config.name}: {len(standing.failed)} jobs failed, {len(standing.blocked)} need them; {first}: {said}; "
                "start again to try them once more"
            )
        if not standing.elsewhere:
            print(f"{self.config.name}: everything is measured; python -m eval.benchmark.report {self.results}")

    def _resolved(self) -> Path:
        """The file that measurements read: the configuration with what the command line said, by its content's hash."""
        values = to_yaml(self.config)
        path = self.runs / "configs" / f"{hashlib.sha256(values.encode()).hexdigest()[:12]}.yaml"
        if not path.exists():
            write_text(path, values)
        return path


def slots(jobs: int | None, threads: int | None) -> Slots:
    """How many processes work at a time, each with how many threads and which GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()  # asks the driver, without starting CUDA in this process
    devices = tuple(visible.split(",")[:count]) if visible and count else tuple(str(number) for number in range(count))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    number = jobs or len(devices) or cores
    return Slots(number, threads or max(1, cores // number), devices)
