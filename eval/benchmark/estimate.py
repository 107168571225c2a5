"""What jobs cost: measured where they or their like were done, else as the benchmark's file assumes, else unknown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Literal

from eval.benchmark.jobs import JobFolder
from eval.benchmark.launcher import duration
from eval.benchmark.plan import Job
from pipeline.core.files import read_json

Source = Literal["measured", "assumed", "unknown"]


class Costs:
    """Seconds of jobs, by the same method, bits and prior with another seed, or by jobs of the kind and prior."""

    def __init__(self, jobs: Mapping[str, Job], assumed: Mapping[str, float]) -> None:
        self.jobs, self.assumed = jobs, assumed
        self.alike: dict[object, dict[str, float]] = {}

    def learn(self, seconds: Mapping[str, float]) -> None:
        """Take up what jobs, by their ids, took."""
        for id, value in seconds.items():
            if id in self.jobs:
                for key in self._keys(self.jobs[id]):
                    self.alike.setdefault(key, {})[id] = value

    def read(self, folders: Mapping[str, JobFolder]) -> None:
        """Take up what is written beside results and in the jobs' states."""
        for id, folder in folders.items():
            file = folder.out / "job.json"
            if folder.job.is_measurement and file.exists():
                self.learn(read_json(file).get("seconds", {}))
            state = folder.state()
            if state.state == "done":
                self.learn({id: state.seconds})

    def of(self, job: Job) -> tuple[float, Source]:
        """Seconds of a job and where they are from; 0 where nothing is known."""
        for key in self._keys(job):
            if key in self.alike:
                return statistics.mean(self.alike[key].values()), "measured"
        for key in (job.family, job.kind):
            if key in self.assumed:
                return self.assumed[key], "assumed"
        return 0.0, "unknown"

    def _keys(self, job: Job) -> Iterable[object]:
        if job.method is not None:
            yield job.method.label, job.bits, job.family
        yield job.family


def estimate(jobs: Iterable[Job], costs: Costs, slots: int, gpus: bool = False) -> str:
    """What is left, by kind: how many jobs, how long each, where that is from, and the sum; `gpus`: one for each slot."""
    families: dict[str, list[tuple[float, Source]]] = {}
    for job in jobs:
        families.setdefault(job.family, []).append(costs.of(job))
    lines, total = [], 0.0
    for family, found in families.items():
        seconds = sum(value for value, _ in found)
        total += seconds
        sources = sorted({source for _, source in found})
        each = duration(seconds / len(found)) if sources != ["unknown"] else "?"
        lines.append(f"  {family:<22s} {len(found):5d} x {each:>9s}   {', '.join(sources)}")
    unknown = sorted({family for family, found in families.items() if any(source == "unknown" for _, source in found)})
    what = "GPU-hours" if gpus else "hours of a process"
    lines.append(f"  in all {total / 3600:,.1f} {what}, {duration(total / slots)} with {slots} at a time")
    if unknown:
        lines.append(f"  not counted, since never measured here: {', '.join(unknown)}")
    return "\n".join(lines)
