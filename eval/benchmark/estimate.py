"""What jobs cost: measured where they or their like were done, else by timed steps, else as the file assumes, else unknown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Literal

from eval.benchmark.jobs import JobFolder
from eval.benchmark.launcher import duration
from eval.benchmark.plan import Kind, PlannedJob
from eval.benchmark.words import counted

Source = Literal["measured", "timed", "assumed", "unknown"]
ORDER: tuple[Kind, ...] = ("tokenizer", "tokens", "prior", "quality", "generation", "yardstick")  # in which they are told


class Costs:
    """Seconds of jobs, by the same method, bits and prior with another seed, or by jobs of the kind and prior."""

    def __init__(self, jobs: Mapping[str, PlannedJob], assumed: Mapping[str, float]) -> None:
        self.jobs, self.assumed = jobs, assumed
        self.alike: dict[object, dict[str, float]] = {}
        self.timed: dict[object, dict[str, float]] = {}

    def learn(self, seconds: Mapping[str, float]) -> None:
        """Take up what jobs, by their ids, took."""
        self._take(seconds, self.alike)

    def learn_timed(self, seconds: Mapping[str, float]) -> None:
        """Take up what jobs, by their ids, will take by the time of some of their steps."""
        self._take(seconds, self.timed)

    def read(self, folders: Mapping[str, JobFolder]) -> None:
        """Take up what is written beside results and in the jobs' states."""
        for id, folder in folders.items():
            if folder.job.is_measurement:
                self.learn(folder.costs())
            state = folder.state()
            if state.state == "done":
                self.learn({id: state.seconds})

    def of(self, job: PlannedJob) -> tuple[float, Source]:
        """Seconds of a job and where they are from; 0 where nothing is known."""
        sources: tuple[tuple[dict[object, dict[str, float]], Source], ...] = ((self.alike, "measured"), (self.timed, "timed"))
        for key in self._keys(job):  # the same method first, however it is known
            for alike, source in sources:
                if key in alike:
                    return statistics.mean(alike[key].values()), source
        for key in (job.family, job.kind):
            if key in self.assumed:
                return self.assumed[key], "assumed"
        return 0.0, "unknown"

    def _take(self, seconds: Mapping[str, float], alike: dict[object, dict[str, float]]) -> None:
        for id, value in seconds.items():
            if id in self.jobs:
                for key in self._keys(self.jobs[id]):
                    alike.setdefault(key, {})[id] = value

    def _keys(self, job: PlannedJob) -> Iterable[object]:
        if job.method is not None:
            yield job.method.label, job.bits, job.family
        yield job.family


def estimate(jobs: Iterable[PlannedJob], costs: Costs, slots: int, gpus: bool = False) -> str:
    """What is left, by kind: how many jobs, how long each and all of them, where that is from, and the sum.

    gpus: there is one for each of the `slots`.
    """
    families: dict[str, list[tuple[float, Source]]] = {}
    for job in sorted(jobs, key=lambda job: ORDER.index(job.kind)):
        families.setdefault(job.family, []).append(costs.of(job))
    width = max(map(len, families), default=0)
    lines, total = [f"  {'job':<{width}s}  {'left':>5s}  {'each':>11s}  {'together':>11s}  time is"], 0.0
    for family, found in families.items():
        known = [value for value, source in found if source != "unknown"]
        total += sum(known)
        each, together = (duration(sum(known) / len(known)), duration(sum(known))) if known else ("?", "?")
        sources = ", ".join(sorted({source for _, source in found}))
        lines.append(f"  {family:<{width}s}  {len(found):>5,d}  {each:>11s}  {together:>11s}  {sources}")
    unknown = [family for family, found in families.items() if any(source == "unknown" for _, source in found)]
    if len(unknown) < len(families):
        hours = f"{total / 3600:,.1f}" if total < 360_000 else f"{total / 3600:,.0f}"
        used = f"{hours} {'GPU-hours' if gpus else 'hours of one process'}" if total >= 3600 else duration(total)
        lines.append(f"In all {used}; {duration(total / slots)} with {counted(slots, 'process')} at a time.")
    else:
        lines.append("How long it takes will be told when one of each kind has been done.")
    if 0 < len(unknown) < len(families):
        lines.append(f"Not counted, since none was ever measured here: {', '.join(unknown)}.")
    return "\n".join(lines)
