"""The whole pipeline on the built-in images:  python -m pipeline.demo   (or `make demo`)

Trains a tokenizer, encodes the data, trains a MaskGIT and an autoregressive prior, samples, evaluates and writes a report,
each with the command that a user would type. What is finished is skipped, what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from pipeline.core.command import run_command
from pipeline.steps import Step, run_steps

LAUNCH = ["accelerate", "launch", "--quiet", "--config_file=configs/accelerate/one_process.yaml"]


def steps(run: Path) -> list[Step]:
    """The commands of the demo in their order."""
    tokenizer, tokens, priors = f"{run / 'tokenizer'}", f"{run / 'tokens'}", [run / "maskgit", run / "ar"]
    encode = ["pipeline/tokenize_dataset.py", "--tokenizer", tokenizer, "--out", tokens]
    evaluate = ["-m", "eval.run", "--tokenizer", tokenizer, "--priors", *map(str, priors), "--out", f"{run / 'eval'}"]
    plan = [
        Step("train the tokenizer", [*LAUNCH, "stage1_tokenizer/train.py", f"run={tokenizer}"]),
        Step("encode the images into tokens", [*LAUNCH, *encode]),
    ]
    for prior in priors:
        settings = [f"--config=configs/stage2/{prior.name}_demo.yaml", f"run={prior}", f"tokens={tokens}"]
        plan.append(Step(f"train the {prior.name} prior", [*LAUNCH, "stage2_prior/train.py", *settings]))
    plan.append(Step("evaluate reconstructions and samples", ["python", *evaluate]))
    plan.append(Step("write the report", ["python", "-m", "eval.report", f"{run}", "--out", f"{run / 'report.html'}"]))
    return plan


def main() -> None:
    """Run the steps one after the other."""
    parser = argparse.ArgumentParser(description="Run the whole pipeline on the built-in satellite images (about 20 minutes).")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="folder of the results (default: runs/demo)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, then stop")
    arguments = parser.parse_args()
    started = time.monotonic()
    run_steps(steps(arguments.run), arguments.dry_run)
    if not arguments.dry_run:
        report = (arguments.run / "report.html").resolve()
        print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. The report: {report}")
        print(f"Next: python -m pipeline.sample --class sahara --seeds 0-15 --pipeline {arguments.run / 'maskgit'}")


if __name__ == "__main__":
    run_command(main)
