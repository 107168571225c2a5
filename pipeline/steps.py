"""Commands one after the other, as a user would type them."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.command import Interrupted, stop_with_launcher
from pipeline.core.errors import UserError

PROJECT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Step:
    """One command: what it does ("train the tokenizer"), its words from `accelerate` or `python` on, its threads, if given."""

    title: str
    command: list[str]
    threads: int | None = None


def run_steps(steps: Sequence[Step], dry_run: bool = False) -> None:
    """Print each command and run it, with this interpreter and from any folder; UserError where one fails."""
    for number, step in enumerate(steps, 1):
        threads = f"OMP_NUM_THREADS={step.threads} " if step.threads else ""
        print(f"\n[{number}/{len(steps)}] {step.title}\n$ {threads}{shlex.join(step.command)}", flush=True)
        if not dry_run:
            _run(step)


def words(step: Step) -> list[str]:
    """What this interpreter is given for a command, from whatever folder it runs in."""
    given = step.command
    given = ["-m", "accelerate.commands.launch", *given[2:]] if given[0] == "accelerate" else given[1:]
    given = [re.sub("^--config_file=configs/", f"--config_file={PROJECT}/configs/", word) for word in given]
    return [str(PROJECT / word) if word.endswith(".py") else word for word in given]


def _run(step: Step) -> None:
    """Run a command. Stopped, it is told so once and waited for, with all that it started: a training writes its snapshot."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "LGQ_THREADS"), str(step.threads)) if step.threads else {}
    command = [sys.executable, *words(step)]
    # a group of its own, so that a Ctrl-C reaches it by way of us; it ends with us, however we end
    child = subprocess.Popen(command, env=os.environ | threads, start_new_session=True, preexec_fn=stop_with_launcher)
    stop: Interrupted | None = None
    while True:
        try:  # around the condition too: a signal may come at any moment
            if child.poll() is not None and (stop is None or not _is_alive(child.pid)):
                break
            time.sleep(0.05)
        except (KeyboardInterrupt, Interrupted) as asked:
            if stop is None:  # a launcher ends at once, and its processes are told by the system
                child.terminate()
            else:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGTERM)
            stop = asked if isinstance(asked, Interrupted) else Interrupted(signal.SIGINT)
    code = child.returncode
    for number in (signal.SIGINT, signal.SIGTERM):
        if stop is None and code in (-number, 128 + number):
            stop = Interrupted(number)
    if stop is not None:
        raise stop
    if code:
        said = f"could not {step.title} (exit code {code}, see above)"
        raise UserError(f"{said}; mend it and run the same command again")


def _is_alive(group: int) -> bool:
    """Whether any process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
