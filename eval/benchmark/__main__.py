"""Which tokenizer is better for generation:  python -m eval.benchmark configs/benchmark/demo.yaml"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.core.command import run_command
from pipeline.core.errors import UserError

EXAMPLES = """examples:
  python -m eval.benchmark configs/benchmark/demo.yaml --dry-run        the contract, the plan and what it costs
  python -m eval.benchmark configs/benchmark/imagenet.yaml --time-steps 20 quantizers=[lgq] bits=[14]   the cost, by steps here
  python -m eval.benchmark configs/benchmark/demo.yaml --jobs 2         two processes at a time
  python -m eval.benchmark configs/benchmark/imagenet.yaml --clean      one process on each GPU; artifacts go when measured
  python -m eval.benchmark configs/benchmark/demo.yaml seeds=[0] quantizers=[lgq,fsq]
  python -m eval.benchmark configs/benchmark/imagenet.yaml --submit 16 --slurm slurm_partition=gpu gpus_per_node=1

Trainings go to runs/benchmark/NAME, results to results/benchmark/NAME. Start the same command as often as you like, on as many
machines as share these folders: they share the work, and no job runs twice at a time. Stopped or killed, it goes on where it
was; what is measured is never measured again, also when runs/ is gone."""


def main() -> None:
    """Parse the command line, check the contract, then run the jobs."""
    parser = argparse.ArgumentParser(
        description="Train tokenizers under equal conditions, priors on their tokens, and measure both.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="FILE", help="a benchmark, for example configs/benchmark/demo.yaml")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings on top of the file, e.g. seeds=[0]")
    parser.add_argument("--jobs", type=int, metavar="N", help="at a time (default: one for each GPU, else for each core)")
    parser.add_argument("--threads", type=int, metavar="N", help="of a job's process (default: the cores shared out)")
    looking = parser.add_mutually_exclusive_group()
    looking.add_argument("--dry-run", action="store_true", help="print the contract, the plan and its cost, then stop")
    timing = "as --dry-run, by the time of N and 2 N steps of every training here on generated pictures (minutes for each)"
    looking.add_argument("--time-steps", type=int, metavar="N", help=timing)
    parser.add_argument("--clean", action="store_true", help="delete checkpoints and tokens once they have been measured")
    parser.add_argument("--leave-after", type=float, metavar="MINUTES", help="leave when there was no work here for so long")
    parser.add_argument("--submit", type=int, metavar="N", help="have N SLURM tasks work on it, by submitit, and return")
    slurm = "submitit's settings, e.g. slurm_partition=gpu gpus_per_node=1 timeout_min=1440"
    parser.add_argument("--slurm", nargs="+", default=[], metavar="key=value", help=slurm)
    parser.add_argument("--cluster", default="slurm", choices=("slurm", "local"), help="local: tasks are processes here")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"), metavar="FOLDER", help="default: runs/benchmark")
    results = Path("results/benchmark")
    parser.add_argument("--results", type=Path, default=results, metavar="FOLDER", help="default: results/benchmark")
    arguments = parser.parse_intermixed_args()
    for name in ("jobs", "threads", "submit", "time_steps"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: {getattr(arguments, name)}; give 1 or more")

    # imported here so that --help and usage errors answer at once
    from eval.benchmark.benchmark import BenchmarkRun
    from eval.benchmark.config import BenchmarkConfig
    from eval.benchmark.submit import Task, submit
    from pipeline.core.config import load_config

    config = load_config(BenchmarkConfig, arguments.config, arguments.settings)
    benchmark = BenchmarkRun(config, arguments.runs, arguments.results, arguments.jobs, arguments.threads)
    if arguments.time_steps:
        benchmark.time_steps(arguments.time_steps)
    print(benchmark.describe(), flush=True)
    dry_run = arguments.dry_run or arguments.time_steps
    if arguments.submit and not dry_run:
        benchmark.check()
        task = Task(config, arguments.runs, arguments.results, arguments.threads, arguments.clean)
        print("submitted", *submit(task, arguments.submit, arguments.slurm, arguments.cluster))
    elif not dry_run:
        benchmark.run(arguments.clean, arguments.leave_after and 60 * arguments.leave_after)


if __name__ == "__main__":
    run_command(main)
