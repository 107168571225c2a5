"""A lock in a folder that processes of one machine or of many share: at most one holds it, and a dead holder loses it.

A holder is a numbered file, `lock.000007`: the one with the highest number counts. Claiming is linking the next number, which
one process alone can do, on NFS too; a file appears with its whole content, and none is ever deleted or given to another, so
that a stale listing or a slow rival cannot take a lock from its new holder. (Taking a dead holder's file away instead would be
a race: of two that saw it dead, the slower would take away the faster one's new lock.)

On the holder's machine a holder is dead when none of its processes runs. On others that cannot be seen: there it is dead when
its heart has not beaten for STALE seconds, by the clock of the file system. A holder that was silent for longer while it lived
(a suspended machine, a lost network) finds a higher number at its next beat, and must stop.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import write_json

HEARTBEAT = 15.0  # seconds between beats
STALE = 300.0  # seconds; NFS may show another machine's beats up to a minute late


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: `machine` tells apart what process ids belong to; processes are [id, start time]."""

    host: str
    machine: str
    processes: list[list[str]]
    since: float
    released: bool = False

    @property
    def alive_here(self) -> bool | None:
        """Whether one of its processes runs; None where that cannot be seen from this machine."""
        if self.machine != this_machine():
            return None
        return any(process_start(int(number)) == start for number, start in self.processes)


class Lock:
    """The lock of a folder; `claim` before touching what it guards, `beat` every HEARTBEAT seconds, `release` at the end."""

    def __init__(self, folder: Path, stale: float = STALE) -> None:
        self.folder, self.stale = folder, stale
        self.mine: Path | None = None
        self.me: Holder | None = None

    def claim(self) -> bool:
        """Take the lock if nobody alive holds it. Raises UserError where the folder cannot hold one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        number = self._newest()
        if number and self.holder() is not None:
            return False
        path, me = self._file(number + 1), _myself()
        if not self._link(path, me):
            return False
        self.mine, self.me = path, me
        return True

    def holder(self) -> Holder | None:
        """Who holds it, None where nobody alive does."""
        newest = self._newest()
        if not newest:
            return None
        path = self._file(newest)
        try:
            holder = Holder(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # damaged by hand, or the file system is not answering
            return Holder("unknown", "", [], 0.0) if self._silent_for(path) < self.stale else None
        if holder.released:
            return None
        alive = holder.alive_here
        if alive is None:
            alive = self._silent_for(path) < self.stale
        return holder if alive else None

    def add_process(self, number: int) -> None:
        """Have the lock held by a child too: it counts as held while the child lives, if this process dies first.

        A child may call it itself, between its start and its program's, so that none ever runs unseen.
        """
        assert self.me is not None
        self.me = replace(self.me, processes=[*self.me.processes, [str(number), process_start(number) or ""]])
        self._write(self.me)

    def held(self) -> bool:
        """Whether it is still ours."""
        return self.mine is not None and self._newest() == int(self.mine.suffix[1:])

    def beat(self) -> bool:
        """Say that the holder lives; False where the lock was lost to another, who thought it dead.

        Where it is True, nobody will think so for the next STALE seconds: what is guarded may be written.
        """
        if self.mine is None:
            return False
        with suppress(OSError):  # the file system may be away for a while, or the folder deleted
            os.utime(self.mine)
        return self.held()

    def release(self) -> None:
        """Let go; what is guarded must be written before. Does nothing where the lock is not held."""
        if self.mine is not None and self.me is not None and self.mine.exists():
            self._write(replace(self.me, released=True))
        self.mine = self.me = None

    def _write(self, holder: Holder) -> None:
        assert self.mine is not None
        write_json(self.mine, asdict(holder))

    def _newest(self) -> int:
        numbers = [path.suffix[1:] for path in self.folder.glob("lock.*")]
        return max((int(number) for number in numbers if number.isdigit()), default=0)

    def _file(self, number: int) -> Path:
        return self.folder / f"lock.{number:06d}"

    def _link(self, path: Path, holder: Holder) -> bool:
        aside = self._aside("claim")
        write_json(aside, asdict(holder))
        try:
            os.link(aside, path)
        except FileExistsError:
            # NFS may repeat a request whose answer was lost: then the link that is in the way is ours. Not by the number of
            # links, which its clients remember for a while
            return path.exists() and os.path.samefile(aside, path)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
                raise UserError(f"{self.folder}: locks need hard links, which this file system has not; use another") from None
            raise
        finally:
            aside.unlink(missing_ok=True)
        return True

    def _silent_for(self, path: Path) -> float:
        """Seconds since a file was touched, by the clock of the file system: machines' own clocks may differ."""
        clock = self._aside("clock")
        clock.touch()
        try:
            return clock.stat().st_mtime - path.stat().st_mtime
        finally:
            clock.unlink(missing_ok=True)

    def _aside(self, what: str) -> Path:
        """A name that no process of any machine uses, not even one of the same id."""
        return self.folder / f".{what}.{uuid.uuid4().hex}"


def this_machine() -> str:
    """What process ids belong to: the host, its boot, and on Linux the container's own numbering of processes."""
    parts = [socket.gethostname()]
    if sys.platform == "linux":
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def process_start(number: int) -> str | None:
    """When a process started, in a form that tells it from a later one of the same id; None where it does not run."""
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()  # a name may hold blanks and brackets; then state is field 3 of proc(5)
        return None if fields[0] in ("Z", "X") else fields[19]
    said = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(number)], capture_output=True, text=True, check=False)
    state, _, start = said.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else start.strip()


def _myself() -> Holder:
    number = os.getpid()
    return Holder(socket.gethostname(), this_machine(), [[str(number), process_start(number) or ""]], time.time())
