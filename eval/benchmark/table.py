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
from eval.benchmark.plan import Job

SHOWN = 8  # failures and jobs of other launchers
RELEARN = 60.0  # seconds between looks at what jobs took
QUIET = 300.0  # seconds between lines that say how things stand, where there is no terminal


class Table:
    """Shows what runs and how far it is, what is done, failed and blocked, and the time left."""

    def __init__(
        self,
        name: str,
        jobs: Mapping[str, Job],
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
        left = [*running, *standing.waiting, *standing.elsewhere]
        leaves = sum(job.is_measurement for job in self.jobs.values())
        counts = {
            "running": len(running),
            "elsewhere": len(standing.elsewhere),
            "waiting": len(standing.waiting),
            "failed": len(standing.failed),
            "blocked": len(standing.blocked),
        }
        states = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        title = f"{self.name}: {len(standing.measured)} of {leaves} measured; {states or 'nothing left'}"
        lines = [f"{title}{self._time_left(left, running, len(standing.elsewhere))}"]
        for id, job in running.items():
            lines.append(f"  {id:<44s} {duration(job.seconds()):>8s}  {bar(self.folders[id].progress())}")
        lines += [f"  {id:<44s} on {host}" for id, host in list(standing.elsewhere.items())[:SHOWN]]
        lines += [f"  {id:<44s} FAILED: {said}" for id, said in list(standing.failed.items())[:SHOWN]]
        return lines

    def _time_left(self, left: list[str], running: Mapping[str, Running], others: int) -> str:
        costs = {id: self.costs.of(self.jobs[id]) for id in left}
        if not left or any(source == "unknown" for _, source in costs.values()):
            return "; time left unknown until one of each kind is done" if left else ""
        seconds = sum(value for value, _ in costs.values())
        seconds -= sum(min(job.seconds(), costs[id][0]) for id, job in running.items())
        return f"; about {duration(seconds / (self.slots + others))} left"

    def _erase(self) -> None:
        if self.drawn:
            self.out.write(f"\x1b[{self.drawn}F\x1b[J")
            self.drawn = 0


def bar(line: str) -> str:
    """The part of a progress bar's line that says how far it is: 45% 2.3k/5.0k [00:30<00:40, 75img/s]."""
    found = re.search(r"(\d+%)\|.*\|\s*(.*)", line)
    return f"{found[1]:>4s} {found[2]}" if found else line
