"""Runs the jobs of a benchmark in processes, some at a time, beside other launchers on the same folders.

Nothing is shared but the folders: every launcher plans by itself and claims a job's lock before it starts it. A job that fails
is recorded and does not stop the rest; what needs it is blocked; the next start tries it again, once.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from eval.benchmark.jobs import JobFolder, State
from eval.benchmark.locks import HEARTBEAT
from eval.benchmark.plan import Job, blocked_by, descendants, wanted
from pipeline.core.command import Interrupted, Interruption, stop_with_launcher
from pipeline.core.files import read_json, write_json

POLL = 0.2  # seconds between looks at the processes
SCAN = 2.0  # seconds between looks at the folders


@dataclass
class Running:
    """A job at work here, in a slot; `before` is its state without this attempt."""

    job: Job
    slot: int
    process: subprocess.Popen[bytes]
    started: float
    before: State

    def seconds(self) -> float:
        """Of all its attempts."""
        return self.before.seconds + time.monotonic() - self.started


@dataclass
class Standing:
    """How things stand, by the jobs' ids: failures with what they said, blocked ones with what failed, held ones by whom."""

    measured: set[str] = field(default_factory=set)
    artifacts: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)


class Display(Protocol):
    """What shows how a benchmark goes on."""

    def event(self, text: str) -> None:
        """Something happened."""

    def update(self, standing: Standing, running: Mapping[str, Running]) -> None:
        """How things stand now."""


@dataclass(frozen=True)
class Slots:
    """`count` processes at a time; GPUs, as CUDA_VISIBLE_DEVICES names them, are dealt out in turn."""

    count: int
    threads: int
    devices: tuple[str, ...] = ()

    def environment(self, slot: int, threads: int) -> dict[str, str]:
        """What a process in this slot is told."""
        device = {"CUDA_VISIBLE_DEVICES": self.devices[slot % len(self.devices)]} if self.devices else {}
        # unbuffered: what it says last stands last in its log
        return {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", **device}


class Launcher:
    """One launcher: `jobs` in their order, the `folders` they work in, and the `command` that does a job.

    clean: delete artifacts once all that was to be measured of them is. leave_after: seconds without work here after which to
    leave, though others are still at work; None: stay, to take over from those that die.
    """

    def __init__(
        self,
        jobs: Mapping[str, Job],
        folders: Mapping[str, JobFolder],
        command: Callable[[Job], list[str]],
        slots: Slots,
        display: Display,
        clean: bool = False,
        leave_after: float | None = None,
    ) -> None:
        self.jobs, self.folders, self.command, self.slots, self.display = jobs, folders, command, slots, display
        self.clean, self.leave_after = clean, leave_after
        self.standing = Standing()
        self.running: dict[str, Running] = {}
        # a failure from before this start is tried again; one that came since, here or elsewhere, is not
        self.attempts = {id: folder.state().attempts for id, folder in folders.items()}

    def run(self) -> Standing:
        """Work until nothing is left to do. Raises Interrupted after SIGINT or SIGTERM, when the children have stopped."""
        interruption = Interruption()
        beaten = busy = time.monotonic()
        next_scan = 0.0
        try:
            while not interruption.signal_number:
                ended = self._reap()
                now = time.monotonic()
                if now - beaten >= HEARTBEAT:
                    self._beat()
                    beaten = now
                if ended or now >= next_scan:
                    self.standing = self._scan()
                    next_scan = time.monotonic() + SCAN
                    if self.clean:
                        self._clean()
                self.display.update(self.standing, self.running)
                busy = now if self.running else busy
                idle = self.leave_after is not None and now - busy > self.leave_after
                if idle or not (self.standing.waiting or self.standing.elsewhere or self.running):
                    return self.standing
                time.sleep(POLL)
        finally:
            self._stop()
        raise Interrupted(interruption.signal_number)

    def _scan(self) -> Standing:
        """Look at the folders, and start what can be started."""
        now = Standing(measured={id for id in self.jobs if self._is_measured(id)})
        needed = wanted(self.jobs, now.measured)
        now.artifacts = {id for id, job in needed.items() if not job.is_measurement and self.folders[id].done()}
        done = now.measured | now.artifacts
        needed = wanted(self.jobs, done)
        states = {id: self.folders[id].state() for id in needed if id not in self.running}
        now.failed = {id: state.error for id, state in states.items() if self._failed(id, state)}
        for id, job in needed.items():
            if id in self.running or id in now.failed:
                continue
            culprit = blocked_by(needed, job, now.failed)
            if culprit is not None:
                now.blocked[id] = culprit
            elif not all(need in done for need in job.needs):
                now.waiting.append(id)
            elif (holder := self.folders[id].lock.holder()) is not None:
                now.elsewhere[id] = holder.host
            elif len(self.running) >= self.slots.count or not self._start(job):
                now.waiting.append(id)
        return now

    def _start(self, job: Job) -> bool:
        """Start a job, if it is free and still wanted."""
        folder = self.folders[job.id]
        if not folder.lock.claim():
            return False
        state = folder.state()  # as the last holder left it
        if folder.done() or self._failed(job.id, state) or not self._is_wanted(job):
            folder.lock.release()
            return False
        folder.prepare()
        slot = min(set(range(self.slots.count)) - {other.slot for other in self.running.values()})
        threads = state.threads or self.slots.threads
        again = state.state == "done"  # it was cleaned away
        before = State(
            state="running",
            attempts=state.attempts + 1,
            seconds=0.0 if again else state.seconds,
            threads=threads,
            inputs=folder.inputs,
        )
        folder.write_state(before)
        command = self.command(job)
        with open(folder.log, "ab") as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command,
                env=os.environ | self.slots.environment(slot, threads),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C reaches this process alone, which then stops them in order
                preexec_fn=stop_with_launcher,
            )
        folder.lock.add_process(process.pid)
        self.running[job.id] = Running(job, slot, process, time.monotonic(), before)
        self.display.event(f"started {job.id}")
        return True

    def _reap(self) -> bool:
        """Record what has ended; gives whether anything has."""
        ended = [running for running in self.running.values() if running.process.poll() is not None]
        for running in ended:
            self._record(running, stopped=False)
        return bool(ended)

    def _record(self, running: Running, stopped: bool) -> None:
        job, folder, code = running.job, self.folders[running.job.id], running.process.returncode
        state = replace(running.before, seconds=running.seconds())
        if code == 0 and folder.made():
            state.state = "done"
            if job.is_measurement:
                self._write_costs(job, state.seconds)
            self.display.event(f"done    {job.id}, {duration(state.seconds)}")
        elif stopped:
            state.state = "stopped"
        else:
            state.state, state.error = "failed", failure(code, folder)
            self.display.event(f"FAILED  {job.id}: {state.error} (see {folder.log})")
        folder.write_state(state)
        folder.lock.release()
        del self.running[job.id]

    def _write_costs(self, job: Job, seconds: float) -> None:
        """Beside a measurement, what it and the jobs it needed took: what plans are made from when runs/ is gone."""
        costs = {job.id: seconds}
        ancestors = list(job.needs)
        while ancestors:
            id = ancestors.pop()
            costs[id] = self.folders[id].state().seconds
            ancestors += self.jobs[id].needs
        file = self.folders[job.id].out / "job.json"
        write_json(file, read_json(file) | {"seconds": {id: round(value, 1) for id, value in costs.items()}})

    def _beat(self) -> None:
        for running in list(self.running.values()):
            folder = self.folders[running.job.id]
            if folder.lock.beat():
                folder.write_state(replace(running.before, seconds=running.seconds()))
            else:
                send(running.process, signal.SIGKILL)
                running.process.wait()
                del self.running[running.job.id]
                self.display.event(f"lost    {running.job.id}: another launcher thought this one dead and took it over")

    def _stop(self) -> None:
        """Stop the children: trainings write a snapshot first. A second signal does not wait for that."""
        try:
            for running in self.running.values():
                send(running.process, signal.SIGTERM)
            if self.running:
                self.display.event(f"stopping {len(self.running)} jobs; trainings write a snapshot")
            for running in self.running.values():
                running.process.wait()
        except Interrupted:
            for running in self.running.values():
                send(running.process, signal.SIGKILL)
                running.process.wait()
        for running in list(self.running.values()):
            self._record(running, stopped=True)

    def _clean(self) -> None:
        for id, job in self.jobs.items():
            if not job.is_measurement and self.folders[id].made() and not self._is_wanted(job):
                self.folders[id].clean()

    def _is_wanted(self, job: Job) -> bool:
        """Whether the job, or one that needs it, is a measurement that is not there."""
        return any(other.is_measurement and not self._is_measured(other.id) for other in [job, *descendants(self.jobs, job.id)])

    def _is_measured(self, id: str) -> bool:
        return id in self.standing.measured or (self.jobs[id].is_measurement and self.folders[id].done())

    def _failed(self, id: str, state: State) -> bool:
        return state.state == "failed" and state.attempts > self.attempts[id]


def send(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a child and what it started."""
    if process.poll() is None:
        os.killpg(process.pid, number)


def failure(code: int, folder: JobFolder) -> str:
    """Why a job failed, in one line."""
    said = folder.last_line()
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return f"killed by {name}{hint}; last it said: {said}"
    if code == 0:
        return f"ended without an error, but without its result; last it said: {said}"
    return said or f"exit code {code}"


def duration(seconds: float) -> str:
    """A time for people: 42 s, 7 min, 3 h 05."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d}"
