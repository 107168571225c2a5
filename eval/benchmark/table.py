"""A live table of a benchmark at work: drawn anew in a terminal, a line per event elsewhere."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Mapping
from typing import TextIO

from eval.benchmark.estimate import Costs
from eval.benchmark.jobs import JobFolder
from eval.benchmark.launcher import Running, Standing, duration
from eval.benchmark.plan import PlannedJob

SHOWN = 8  # failures, and jobs of other launchers
RELEARN = 60.0  # seconds between looks at what jobs took
QUIET = 300.0  # seconds between lines that say how things stand, where there is no terminal


class Table:
    """Shows what runs and how far it is, what is done, failed and blocked, and the time left."""

    def __init__(
        self,
        name: str,
        jobs: Mapping[str, PlannedJob],
        folders: Mapping[str, JobFolder],
        costs: Costs,
        slots: int,
        out: TextIO | None = None,
    ) -> None:
        self.name, self.jobs, self.folders, self.costs, self.slots = name, jobs, folders, costs, slots
        self.out = out or sys.stdout
        self.live = self.out.isatty()
        self.drawn, self.drawn_at, self.learned_at = 0, 0.0, time.monotonic()

    def event(self, text: str) -> None:
        """A line that stays, above the table."""
        self._erase()
        self.out.write(f"{time.strftime('%H:%M:%S')}  {text}\n")
        self.out.flush()

    def update(self, standing: Standing, running: Mapping[str, Running]) -> None:
        """Draw the table, at most once a second."""
        now = time.monotonic()
        if now - self.drawn_at < (1.0 if self.live else QUIET):
            return
        self.drawn_at = now
        if now - self.learned_at > RELEARN:
            self.costs.read(self.folders)
            self.learned_at = now
        lines = self.lines(standing, running)
        if not self.live:
            self.event(lines[0])
            return
        self._erase()
        width = shutil.get_terminal_size().columns
        self.out.write("".join(f"{line[: width - 1]}\n" for line in lines))
        self.out.flush()
        self.drawn = len(lines)

    def lines(self, standing: Standing, running: Mapping[str, Running]) -> list[str]:
        """The table: a summary, then one line for each job at work, failures, and what they block."""
        leaves = sum(job.is_measurement for job in self.jobs.values())
        counts = {
            "running here": len(running),
            "running elsewhere": len(standing.elsewhere),
            "waiting": len(standing.waiting),
            "failed": len(standing.failed),
            "waiting for a failed one": len(standing.blocked),
        }
        states = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        title = f"{self.name}: {len(standing.measured)} of {leaves} measured; jobs: {states or 'none left'}"
        here = {id: f"{duration(job.seconds()):>11s}  {bar(self.folders[id].progress())}" for id, job in running.items()}
        there = {id: f"on {host}" for id, host in standing.elsewhere.items()}
        failed = {id: f"FAILED: {said}" for id, said in standing.failed.items()}
        shown = here | dict(list(there.items())[:SHOWN]) | dict(list(failed.items())[:SHOWN])
        width = max(map(len, shown), default=0)
        hidden = len(here) + len(there) + len(failed) - len(shown)
        return [
            f"{title}{self._time_left(standing, running)}",
            *(f"  {id:<{width}s}  {said}" for id, said in shown.items()),
            *([f"  and {hidden} more"] if hidden else []),
        ]

    def _time_left(self, standing: Standing, running: Mapping[str, Running]) -> str:
        left = {id: self.costs.of(self.jobs[id]) for id in (*running, *standing.waiting, *standing.elsewhere)}
        if not left or any(source == "unknown" for _, source in left.values()):
            return "; time left unknown until one of each kind is done" if left else ""
        seconds = {id: cost - min(cost, running[id].seconds() if id in running else 0.0) for id, (cost, _) in left.items()}
        shared = sum(seconds.values()) / (self.slots + len(standing.elsewhere))
        return f"; about {duration(max(shared, *seconds.values()))} left"

    def _erase(self) -> None:
        if self.drawn:
            self.out.write(f"\x1b[{self.drawn}F\x1b[J")
            self.drawn = 0


def bar(line: str) -> str:
    """The part of a progress bar's line that says how far it is: 45% 2.3k/5.0k [00:30<00:40, 75img/s]."""
    found = re.search(r"(\d+%)\|.*\|\s*(.*)", line)
    return f"{found[1]:>4s} {found[2]}" if found else line
