"""Make a result again from the images, and compare:  python -m pipeline.reproduce results/…/result.json"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.core.command import run_command

DIFFERENT = 4  # exit code
EXAMPLES = """examples:
  python -m pipeline.reproduce runs/demo/eval/maskgit/result.json              train, encode, train, sample, measure, compare
  python -m pipeline.reproduce runs/demo/eval/maskgit --prior runs/demo/maskgit   measure alone, on models that are there
  python -m pipeline.reproduce results/benchmark/demo/jobs/quality/lgq-8b-s0 --dry-run

The settings, seeds, threads and processes are those in the file; the images must be the same. Interrupted, the same command
goes on. On the machine and with the code and packages of then the numbers are the same to the bit; what differs is listed.
Exit code 0: every metric is the same, 4: made again, but some are not."""


def main() -> None:
    """Parse the command line, make the result again, and say how it compares."""
    parser = argparse.ArgumentParser(
        description="Make an evaluation's or a benchmark's result again from its own file, and compare.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("result", type=Path, metavar="RESULT", help="a result.json, or the folder that holds it")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of the new runs (default: runs/reproduced/NAME)")
    parser.add_argument("--tokenizer", type=Path, metavar="RUN", help="the tokenizer itself, so that it is not trained again")
    parser.add_argument("--prior", type=Path, metavar="RUN", help="the prior itself, so that nothing is trained again")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, then stop")
    arguments = parser.parse_args()

    # imported here so that --help and usage errors answer at once
    from pipeline.reproduction import changes, compare, find_remade, read_recorded, remake, require_data, table
    from pipeline.steps import run_steps

    recorded = read_recorded(arguments.result)
    out = arguments.out or Path("runs/reproduced") / recorded.path.resolve().parent.name
    require_data(recorded)
    remaking = remake(recorded, out, arguments.tokenizer, arguments.prior)
    if arguments.dry_run:
        run_steps(remaking.steps, dry_run=True)
        return
    remaking.write_files()
    run_steps(remaking.steps)
    remade = find_remade(recorded, out)
    rows = compare(recorded, remade)
    same = sum(row.same for row in rows)
    print(f"\n{recorded.path} then, {remade} now:\n{table(rows)}")
    for change in changes(recorded, remade):
        print(f"differs: {change}")
    print("every metric is the same, to the bit" if same == len(rows) else f"{len(rows) - same} of {len(rows)} metrics differ")
    sys.exit(0 if same == len(rows) else DIFFERENT)


if __name__ == "__main__":
    run_command(main)
