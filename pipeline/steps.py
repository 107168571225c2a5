"""Commands one after the other, as a user would type them."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.command import Interrupted
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
    environment = os.environ | ({"OMP_NUM_THREADS": str(step.threads)} if step.threads else {})
    result = subprocess.run([sys.executable, *words(step)], check=False, env=environment)
    if result.returncode in (-signal.SIGINT, 128 + signal.SIGINT):
        raise Interrupted(signal.SIGINT)
    if result.returncode:
        said = f"could not {step.title} (exit code {result.returncode}, see above)"
        raise UserError(f"{said}; mend it and run the same command again")
