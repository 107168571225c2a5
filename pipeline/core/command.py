"""What every command does the same way: one line per error, exit codes, and a clean stop on Ctrl-C or SIGTERM.

Exit codes: 0 done · 2 the user can mend it · 3 another process of the group is gone · 4 a result was made again and differs ·
130 stopped by SIGINT · 143 stopped by SIGTERM (trainings write a snapshot first).
This module imports nothing heavy, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable
from time import monotonic
from types import FrameType
from typing import NoReturn

from pipeline.core.errors import UserError
from pipeline.core.progress import close_bars

REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space, then run the same command again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "ask for the right to it, or choose another place"),
    errno.EROFS: "choose a place that can be written",
    errno.ENOENT: "put it back, then run the same command again",
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY), "choose another place"),
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "look after the disk, then run the same command again",
}
ECHO = 2.0  # seconds


class Interrupted(BaseException):
    """A run stopped by a signal, a training after it wrote its snapshot. As KeyboardInterrupt, no error that may be handled."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


class Interruption:
    """Remembers SIGTERM and SIGINT so that a loop can finish its step, save and stop; a second, equal one stops at once.

    A SIGTERM within ECHO seconds of another is no second one: where a whole group is told to stop, its launcher dies of it, and
    the system tells each process again (`stop_with_launcher`).
    """

    def __init__(self) -> None:
        self.signal_number, self._since = 0, 0.0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number != number:
            self.signal_number, self._since = number, monotonic()
        elif number == signal.SIGINT or monotonic() - self._since > ECHO:
            raise Interrupted(number)


def stop_with_launcher() -> None:
    """On Linux, have SIGTERM sent to this process when the one that started it dies.

    `accelerate launch` does not pass SIGTERM on: its child would train on unseen, and a second start would train beside it.
    """
    if sys.platform == "linux":
        launcher = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG
        if os.getppid() != launcher:
            os.kill(os.getpid(), signal.SIGTERM)


def lost_process(error: BaseException) -> str | None:
    """What torch says where another process of the group is gone or late, in short; None for any other error."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "DistError" not in kinds and not ("RuntimeError" in kinds and "/gloo/" in str(error)):
        return None
    # without the place in torch's source, and what follows the first sentence
    said = re.sub(r"^\[[^\]]*(/gloo/|/torch/)[^\]]*\]\s*", "", str(error).strip())
    return re.split(r"\n|\. ", said)[0][:200]


def too_large(error: BaseException) -> str | None:
    """How much memory was asked for in vain, where that is the error; None for any other."""
    kinds, said = {kind.__name__ for kind in type(error).__mro__}, str(error)
    words = ("can't allocate memory", "not enough memory", "out of memory")
    if not (kinds & {"MemoryError", "OutOfMemoryError"} or any(word in said for word in words)):
        return None
    asked = re.search(r"allocate ([\d.]+ ?\w+)", said)
    return f"{asked[1]} asked for at once" if asked else "no more to be had"


def explained(error: BaseException) -> tuple[str, int] | None:
    """The line and the exit code for an error of torch or numpy that is no fault of ours; None for any other."""
    if memory := too_large(error):
        remedy = "take fewer images at a time (batch_size, micro_batch), a smaller model, or a larger machine"
        return f"error: out of memory: {memory}; {remedy}", 2
    if "EADDRINUSE" in str(error):
        port = os.environ.get("MASTER_PORT", "unknown")
        return f"error: launch: port {port} is taken by another program; give another one with --main_process_port", 2
    if reason := lost_process(error):
        lost = f"stopped: another process has ended or does not answer ({reason}); see what it said"
        return f"{lost}, then run the same command again to go on", 3
    return None


def terminate(number: int, frame: FrameType | None) -> None:
    """Handles a signal: leaves the command at once."""
    raise Interrupted(number)


def run_command(main: Callable[[], None], several: bool = False) -> NoReturn:
    """Run a command's `main` and exit: errors that the user can mend, those of disks too, are one line without a traceback.

    several: the command works as any number of processes; others are refused where a launcher started more than one.
    """
    rank, processes = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    prefix = "" if rank == "0" else f"process {rank}: "
    signal.signal(signal.SIGTERM, terminate)
    if "ACCELERATE_MIXED_PRECISION" in os.environ:  # which `accelerate launch` sets
        stop_with_launcher()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    said, code = "", 0
    try:
        if "RANK" in os.environ and processes != "1" and not several:
            raise UserError(f"launch: {processes} processes would all do the same; start this command without a launcher")
        main()
    except (Exception, Interrupted, KeyboardInterrupt) as error:
        _on_signals(signal.SIG_IGN)  # a second one would cut short what is said
        close_bars()
        known = outcome(error)
        if known is None:
            _on_signals(signal.SIG_DFL)
            raise
        said, code = known
        print(f"{prefix}{said}", file=sys.stderr, flush=True)
    _on_signals(signal.SIG_DFL)  # what is left to tidy up may take its time, and ends without a traceback
    sys.stdout.flush()
    sys.exit(code)


def outcome(error: BaseException) -> tuple[str, int] | None:
    """The line and the exit code of a command that ended with this error; None where it is a fault of ours."""
    if isinstance(error, UserError):
        return f"error: {error}", 2
    if isinstance(error, OSError) and error.errno in REMEDIES:
        place = UserError(f"{error.filename or 'a file'}: {error.strerror}; {REMEDIES[error.errno]}")
        return f"error: {place}", 2
    if isinstance(error, Interrupted):
        return f"{error}; run the same command again to go on", error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "stopped; run the same command again to go on", 130
    return explained(error) if isinstance(error, (RuntimeError, MemoryError)) else None


def _on_signals(handler: signal.Handlers) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def training_parser(description: str, default_config: str, examples: str) -> argparse.ArgumentParser:
    """The command line that both training commands share: `--config FILE`, `--dry-run` and `key=value` settings."""
    parser = argparse.ArgumentParser(
        description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=default_config, metavar="FILE", help=f"YAML file (default: {default_config})")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and the costs, then stop")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings on top of the file, e.g. optim.lr=2e-4")
    return parser
