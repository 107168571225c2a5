"""A benchmark as a whole: its contract, its plan, and one launcher that works on it."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from eval.benchmark.commands import Commands
from eval.benchmark.config import BenchmarkConfig
from eval.benchmark.contract import Settings, contract, text, whole, write_contract
from eval.benchmark.estimate import Costs, estimate
from eval.benchmark.jobs import JobFolder
from eval.benchmark.launcher import Launcher, Slots
from eval.benchmark.locks import Lock
from eval.benchmark.plan import PlannedJob, all_jobs, wanted
from eval.benchmark.table import Table
from eval.benchmark.timing import StepTimer, read_step_times, write_step_times
from eval.benchmark.words import counted
from pipeline.core.config import to_yaml
from pipeline.core.errors import UserError
from pipeline.core.files import write_text


class BenchmarkRun:
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
        self.folders = {id: JobFolder(job, self.settings.inputs(job), self.runs, self.results) for id, job in self.jobs.items()}
        self.slots = slots(jobs, threads)
        self.costs = Costs(self.jobs, config.assumed_seconds)
        self.costs.read(self.folders)
        self.costs.learn_timed(read_step_times(self.runs))

    def wanted(self) -> dict[str, PlannedJob]:
        """The jobs that are left."""
        measured = {id for id, job in self.jobs.items() if job.is_measurement and self.folders[id].done()}
        needed = wanted(self.jobs, measured)
        made = {id for id, job in needed.items() if not job.is_measurement and self.folders[id].done()}
        return wanted(self.jobs, measured | made)

    def describe(self) -> str:
        """The contract, the plan and what it costs."""
        left, obstacles = self.wanted(), self.obstacles()
        leaves = [id for id, job in self.jobs.items() if job.is_measurement]
        measured = sum(id not in left for id in leaves)
        lines = [text(self.contract, self.config.tolerance), f"Plan: {measured} of {len(leaves)} measurements are there."]
        outdated = [id for id in leaves if self.folders[id].outdated()]
        if outdated:
            why = "; ".join(self.folders[outdated[0]].outdated()[:2])
            others = f"{counted(len(outdated), 'more measurement')} of other settings will be made again"
            lines.append(f"{others} ({outdated[0]}: {why}).")
        if left:
            lines.append(estimate(left.values(), self.costs, self.slots.count, bool(self.slots.devices)))
        if obstacles:
            lines += ["", "Nothing can be started:", *(f"  {obstacle}" for obstacle in obstacles)]
        return "\n".join(lines)

    def time_steps(self, steps: int) -> None:
        """Time so many steps of every training here; the plan goes by them from now on."""
        with TemporaryDirectory() as folder:
            config = Path(folder, "benchmark.yaml")
            write_text(config, to_yaml(self.config))
            found = StepTimer(self.settings, config, self.slots, steps, lambda said: print(said, flush=True)).time(self.jobs)
        write_step_times(self.runs, found)
        self.costs.learn_timed(read_step_times(self.runs))

    def obstacles(self) -> list[str]:
        """All that must be mended before hours are spent, a line each with the remedy."""
        found = [f"not a fair comparison: {violation}" for violation in self.contract.violations]
        try:
            whole(self.contract, self.results)
        except UserError as error:
            found.append(str(error))
        for id in self.wanted():
            state = self.folders[id].state()
            if state.state != "damaged" and (obstacle := self.folders[id].obstacle(state)):
                found.append(obstacle)
        images: dict[str, str] = {}
        for id, folder in self.folders.items():
            if fingerprint := folder.fingerprint():
                images.setdefault(fingerprint, id)
        if len(images) > 1:
            prints, ids = " and ".join(images), " and ".join(images.values())
            remedy = f"delete what was made of images that have changed, in {self.runs} and {self.results / 'jobs'}"
            found.append(f"{ids}: made of different images (fingerprints {prints}); {remedy}")
        return found

    def check(self) -> None:
        """Raises UserError where something must be mended first."""
        obstacles = self.obstacles()
        if obstacles:
            more = f" ({len(obstacles) - 1} more above)" if len(obstacles) > 1 else ""
            raise UserError(f"{self.config.name}: nothing was started: {obstacles[0]}{more}")

    def run(self, clean: bool = False, leave_after: float | None = None) -> None:
        """Work until nothing is left to do here. Raises UserError at the end where jobs failed."""
        self.check()
        resolved = self.write()
        table = Table(self.config.name, self.jobs, self.folders, self.costs, self.slots.count)
        command = Commands(self.settings, resolved, self.runs, self.results)
        standing = Launcher(self.jobs, self.folders, command, self.slots, table, clean, leave_after).run()
        if standing.failed:
            first, said = next(iter(standing.failed.items()))
            raise UserError(
                f"{self.config.name}: {counted(len(standing.failed), 'job')} failed, "
                f"which {len(standing.blocked)} others need; {first}: {said}; start again to try once more"
            )
        if not standing.elsewhere:
            print(f"{self.config.name}: everything is measured; python -m eval.benchmark.report {self.results}")

    def write(self) -> Path:
        """Write the contract and the file that measurements read; gives that file.

        It is the configuration with what the command line said, by its content's hash. One launcher at a time, since each adds
        to the contract.
        """
        values = to_yaml(self.config)
        path = self.runs / "configs" / f"{hashlib.sha256(values.encode()).hexdigest()[:12]}.yaml"
        lock = Lock(self.runs / "configs")
        while not lock.claim():
            time.sleep(0.1)
        try:
            write_contract(self.contract, self.results)
            if not path.exists():
                write_text(path, values)
        finally:
            lock.release()
        return path


def slots(jobs: int | None, threads: int | None) -> Slots:
    """How many processes work at a time, each with how many threads and which GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()  # asks the driver, without starting CUDA in this process
    devices = tuple(visible.split(",")[:count]) if visible and count else tuple(str(number) for number in range(count))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    number = jobs or len(devices) or cores
    return Slots(number, threads or max(1, cores // number), devices)
