"""Runs the jobs of a benchmark in processes, some at a time, beside other launchers on the same folders.

Nothing is shared but the folders: every launcher plans by itself and claims a job's lock before it starts it. A job that fails
is recorded and does not stop the rest; what needs it is blocked; the next start tries it again, once.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from eval.benchmark.jobs import JobFolder, State
from eval.benchmark.locks import HEARTBEAT, Lock
from eval.benchmark.plan import PlannedJob, blocked_by, descendants, wanted
from eval.benchmark.words import counted
from pipeline.core.command import Interrupted, Interruption, stop_with_launcher

POLL = 0.2  # seconds between looks at the processes
SCAN = 2.0  # seconds between looks at the folders
MAXRSS = 1 if sys.platform == "darwin" else 1024  # bytes in which the system tells peak memory


@dataclass
class Running:
    """A job at work here, in a slot; `before` is its state without this attempt."""

    job: PlannedJob
    slot: int
    process: subprocess.Popen[bytes]
    started: float
    before: State
    peak_mb: float | None = None

    def seconds(self) -> float:
        """Of all its attempts."""
        return self.before.seconds + time.monotonic() - self.started

    def ended(self, wait: bool = False) -> bool:
        """Whether its process has ended; then the memory that it took is in `peak_mb`."""
        if self.process.returncode is None:  # asked of the system here, since Popen throws the usage away
            number, status, usage = os.wait4(self.process.pid, 0 if wait else os.WNOHANG)
            if number:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                self.peak_mb = max(self.before.peak_mb or 0.0, round(usage.ru_maxrss * MAXRSS / 1e6, 1))
        return self.process.returncode is not None

    def send(self, number: int) -> None:
        """Send a signal to it and what it started."""
        if not self.ended():
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it, at once."""
        self.send(signal.SIGKILL)
        self.ended(wait=True)

    def state(self) -> State:
        """As it stands now."""
        return replace(self.before, seconds=self.seconds(), peak_mb=self.peak_mb or self.before.peak_mb)


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
    leave, though others are still at work; None: stay, to take over from those that die. heartbeat: seconds between beats.
    """

    def __init__(
        self,
        jobs: Mapping[str, PlannedJob],
        folders: Mapping[str, JobFolder],
        command: Callable[[PlannedJob], list[str]],
        slots: Slots,
        display: Display,
        clean: bool = False,
        leave_after: float | None = None,
        heartbeat: float = HEARTBEAT,
    ) -> None:
        self.jobs, self.folders, self.command, self.slots, self.display = jobs, folders, command, slots, display
        self.clean, self.leave_after, self.heartbeat = clean, leave_after, heartbeat
        self.beaten = time.monotonic()
        self.standing = Standing()
        self.running: dict[str, Running] = {}
        # a failure from before this start is tried again; one that came since, here or elsewhere, is not
        self.attempts = {id: folder.state().attempts for id, folder in folders.items()}

    def run(self) -> Standing:
        """Work until nothing is left to do. Raises Interrupted after SIGINT or SIGTERM, when the children have stopped."""
        interruption = Interruption()
        busy = time.monotonic()
        next_scan = 0.0
        try:
            while not interruption.signal_number:
                ended = self._reap()
                self._beat()
                now = time.monotonic()
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
        now.failed = {id: why for id, state in states.items() if (why := self._failure(id, state))}
        for id in now.failed.keys() - self.standing.failed.keys():
            self.display.event(f"FAILED  {id}: {now.failed[id]}")
        for id, job in needed.items():
            self._beat()
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

    def _start(self, job: PlannedJob) -> bool:
        """Start a job, if it is free and still wanted."""
        folder = self.folders[job.id]
        if not folder.lock.claim():
            return False
        state = folder.state()  # as the last holder left it
        if folder.done() or self._failure(job.id, state) or not self._is_wanted(job):
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
            peak_mb=None if again else state.peak_mb,
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
                preexec_fn=lambda: begin(folder.lock),
            )
        self.running[job.id] = Running(job, slot, process, time.monotonic(), before)
        self.display.event(f"started {job.id}")
        return True

    def _reap(self, stopped: bool = False) -> bool:
        """Record what has ended, or was `stopped`; gives whether anything has."""
        ended = [running for running in self.running.values() if running.ended()]
        for running in ended:
            self._record(running, stopped)
        return bool(ended)

    def _record(self, running: Running, stopped: bool) -> None:
        job, folder, code = running.job, self.folders[running.job.id], running.process.returncode
        if not folder.lock.beat():
            self._lose(running)
            return
        state = running.state()
        if code == 0 and folder.made():
            state.state = "done"
            if job.is_measurement:
                self._write_costs(job, state)
            self.display.event(f"done    {job.id}, {duration(state.seconds)}")
        elif stopped:
            state.state = "stopped"
        else:
            state.state, state.error = "failed", f"{failure(code, folder)} (see {folder.log})"
        folder.write_state(state)
        folder.lock.release()
        del self.running[job.id]

    def _write_costs(self, job: PlannedJob, state: State) -> None:
        """Beside a measurement, what it and the jobs it needed took: what plans are made from when runs/ is gone."""
        states = {job.id: state}
        ancestors = list(job.needs)
        while ancestors:
            id = ancestors.pop()
            states[id] = self.folders[id].state()
            ancestors += self.jobs[id].needs
        self.folders[job.id].write_costs(
            seconds={id: round(state.seconds, 1) for id, state in states.items()},
            peak_mb={id: state.peak_mb for id, state in states.items() if state.peak_mb is not None},
        )

    def _beat(self) -> None:
        """Say that the jobs at work are, where it is time; stop those that another launcher has taken over."""
        if time.monotonic() - self.beaten < self.heartbeat:
            return
        self.beaten = time.monotonic()
        for running in list(self.running.values()):
            folder = self.folders[running.job.id]
            if folder.lock.beat():
                folder.write_state(running.state())
            else:
                self._lose(running)

    def _lose(self, running: Running) -> None:
        running.kill()
        del self.running[running.job.id]
        self.display.event(f"lost    {running.job.id}: another launcher thought this one dead and took it over")

    def _stop(self) -> None:
        """Stop the children: trainings write a snapshot first. A second signal does not wait for that."""
        try:
            for running in self.running.values():
                running.send(signal.SIGTERM)
            if self.running:
                self.display.event(f"stopping {counted(len(self.running), 'job')}; trainings write a snapshot")
            while self.running:
                self._reap(stopped=True)
                self._beat()
                time.sleep(POLL)
        except Interrupted:
            for running in self.running.values():
                running.kill()
            self._reap(stopped=True)

    def _clean(self) -> None:
        """Delete the artifacts that nothing needs and nobody works with."""
        for id, job in self.jobs.items():
            self._beat()
            folder = self.folders[id]
            if job.is_measurement or self._is_wanted(job) or not folder.leavings() or not folder.lock.claim():
                continue
            if not any(self.folders[user.id].lock.holder() for user in descendants(self.jobs, id)):
                folder.clean()
            folder.lock.release()

    def _is_wanted(self, job: PlannedJob) -> bool:
        """Whether the job, or one that needs it, is a measurement that is not there."""
        return any(other.is_measurement and not self._is_measured(other.id) for other in [job, *descendants(self.jobs, job.id)])

    def _is_measured(self, id: str) -> bool:
        return id in self.standing.measured or (self.jobs[id].is_measurement and self.folders[id].done())

    def _failure(self, id: str, state: State) -> str:
        """Why a job cannot be done, or not again; "" where it can."""
        failed = state.state == "failed" and state.attempts > self.attempts[id]
        return state.error if failed else self.folders[id].obstacle(state)


def begin(lock: Lock) -> None:
    """In a child, before its program runs: end with the launcher, and hold the lock too, so that no job ever runs unseen."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # the launcher's own handlers would swallow its death
    stop_with_launcher()
    lock.add_process(os.getpid())


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
    """A time for people: 42 s, 1.6 min, 47 min, 3 h 05 min, 202 days."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min" if minutes >= 10 else f"{seconds / 60:.1f} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes < 48 * 60 else f"{minutes / 1440:.3g} days"
