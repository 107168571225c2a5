"""What every command does the same way: one line per error, exit codes, and a clean stop on Ctrl-C or SIGTERM.

Exit codes: 0 done · 2 the user can mend it · 3 another process of the group is gone · 130 stopped by SIGINT · 143 stopped by
SIGTERM (a snapshot was written first).
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


class Interrupted(Exception):
    """A run stopped by a signal after it wrote its snapshot."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


class Interruption:
    """Remembers SIGTERM and SIGINT so that a loop can finish its step, save and stop; a second, equal one stops at once."""

    def __init__(self) -> None:
        self.signal_number = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number == number:
            raise Interrupted(number)
        self.signal_number = number


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


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a command's `main` and exit: errors that the user can mend, those of disks too, are one line without a traceback."""
    rank = os.environ.get("RANK", "0")
    prefix = "" if rank == "0" else f"process {rank}: "
    if "ACCELERATE_MIXED_PRECISION" in os.environ:  # which `accelerate launch` sets
        stop_with_launcher()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    said, code = "", 0
    try:
        main()
    except UserError as error:
        said, code = f"error: {error}", 2
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        place = UserError(f"{error.filename or 'a file'}: {error.strerror}; {REMEDIES[error.errno]}")
        said, code = f"error: {place}", 2
    except Interrupted as stop:
        said, code = f"{stop}; run the same command again to go on", stop.exit_code
    except RuntimeError as error:
        reason = lost_process(error)
        if reason is None:
            raise
        lost = UserError(f"another process has ended or does not answer ({reason}); see what it said")
        said, code = f"stopped: {lost}, then run the same command again to go on", 3
    except KeyboardInterrupt:
        said, code = "stopped; run the same command again to go on", 130
    if said:
        close_bars()
        print(f"{prefix}{said}", file=sys.stderr)
    sys.stdout.flush()
    sys.exit(code)


def training_parser(description: str, default_config: str, examples: str) -> argparse.ArgumentParser:
    """The command line that both training commands share: `--config FILE`, `--dry-run` and `key=value` settings."""
    parser = argparse.ArgumentParser(
        description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=default_config, metavar="FILE", help=f"YAML file (default: {default_config})")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and the costs, then stop")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings on top of the file, e.g. optim.lr=2e-4")
    return parser
