"""The whole pipeline on the built-in images:  python -m pipeline.demo   (or `make demo`)

Trains a tokenizer, encodes the data, trains a MaskGIT and an autoregressive prior, samples, evaluates and writes a report,
each with the command that a user would type. What is finished is skipped, what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline.core.command import Interrupted, run_command
from pipeline.core.errors import UserError

PROJECT = Path(__file__).resolve().parents[1]
LAUNCH = ["accelerate", "launch", "--quiet", "--config_file=configs/accelerate/one_process.yaml"]


def steps(run: Path) -> list[tuple[str, list[str]]]:
    """The commands of the demo in their order: a title and a command line each."""
    tokenizer, tokens, priors = f"{run / 'tokenizer'}", f"{run / 'tokens'}", [run / "maskgit", run / "ar"]
    encode = ["pipeline/tokenize_dataset.py", "--tokenizer", tokenizer, "--out", tokens]
    evaluate = ["-m", "eval.run", "--tokenizer", tokenizer, "--priors", *map(str, priors), "--out", f"{run / 'eval'}"]
    plan = [
        ("train the tokenizer", [*LAUNCH, "stage1_tokenizer/train.py", f"run={tokenizer}"]),
        ("encode the images into tokens", [*LAUNCH, *encode]),
    ]
    for prior in priors:
        settings = [f"--config=configs/stage2/{prior.name}_demo.yaml", f"run={prior}", f"tokens={tokens}"]
        plan.append((f"train the {prior.name} prior", [*LAUNCH, "stage2_prior/train.py", *settings]))
    plan.append(("evaluate reconstructions and samples", ["python", *evaluate]))
    plan.append(("write the report", ["python", "-m", "eval.report", f"{run}", "--out", f"{run / 'report.html'}"]))
    return plan


def main() -> None:
    """Run the steps one after the other."""
    parser = argparse.ArgumentParser(description="Run the whole pipeline on the built-in satellite images (about 20 minutes).")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="folder of the results (default: runs/demo)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, then stop")
    arguments = parser.parse_args()
    started = time.monotonic()
    plan = steps(arguments.run)
    for number, (title, command) in enumerate(plan, 1):
        print(f"\n[{number}/{len(plan)}] {title}\n$ {shlex.join(command)}", flush=True)
        if not arguments.dry_run:
            run_step(title, command)
    if not arguments.dry_run:
        report = (arguments.run / "report.html").resolve()
        print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. The report: {report}")
        print(f"Next: python -m pipeline.sample --class sahara --seeds 0-15 --pipeline {arguments.run / 'maskgit'}")


def run_step(title: str, command: list[str]) -> None:
    """Run one command with this interpreter, from any folder; stop with its exit code where it fails."""
    launcher = ["-m", "accelerate.commands.launch", *command[2:]] if command[0] == "accelerate" else command[1:]
    words = [word.replace("configs/", f"{PROJECT}/configs/") for word in launcher]
    words = [str(PROJECT / word) if word.endswith(".py") else word for word in words]
    result = subprocess.run([sys.executable, *words], check=False)
    if result.returncode in (-signal.SIGINT, 128 + signal.SIGINT):
        raise Interrupted(signal.SIGINT)
    if result.returncode:
        raise UserError(f"demo: could not {title} (exit code {result.returncode}, see above); mend it and run the demo again")


if __name__ == "__main__":
    run_command(main)
