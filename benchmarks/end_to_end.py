"""The demo against the clock, and where the time of both stages goes:  python -m benchmarks.end_to_end

1. The commands of `make demo`, one after the other: seconds, processor seconds, peak memory, and the numbers they reach.
2. Steps of each training under torch's profiler, as shares of the time between two optimizer steps (the profiler itself slows a
   step): the forward pass with all that is no other, backward, the optimizer, waiting for data, and what is outside torch.
3. The data alone, without a model: how many times faster it comes than a training asks for it.
Writes results/end_to_end_DEVICE.json, in place of what an earlier run wrote there, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile

from benchmarks.measuring import command_line, device_name, in_a_process, measured_by, opened, result_file
from pipeline.core.command import run_command
from pipeline.core.config import load_config
from pipeline.core.data.images import ImageDataset, image_batches
from pipeline.core.data.sources import load_data
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.core.token_store import TokenStore
from pipeline.demo import steps
from pipeline.steps import words
from stage1_tokenizer import training as stage1
from stage1_tokenizer.config import Stage1Config
from stage2_prior import training as stage2
from stage2_prior.config import Stage2Config

WARM, PROFILED = 10, 30  # steps
TOP = 12  # operations that are named
DATA_SECONDS = 10
CONFIGS = {
    "tokenizer": "configs/stage1/demo.yaml",
    "maskgit": "configs/stage2/maskgit_demo.yaml",
    "ar": "configs/stage2/ar_demo.yaml",
}


def main() -> None:
    """Parse the command line, then run the demo and the profiles, or one profile as a child."""
    parser = command_line("end_to_end", __doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/end_to_end"), help="a new folder (default: runs/end_to_end)")
    parser.add_argument("--out", type=Path, help="default: results/end_to_end_DEVICE.json")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(profiled(**json.loads(arguments.case))))
        return
    if arguments.run.exists():
        raise UserError(f"--run: {arguments.run} exists, and what is finished takes no time; delete it, or give a new folder")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out = arguments.out or result_file("end_to_end", device)
    opened(out, device)  # before the minutes that it takes
    result: dict[str, Any] = {"device": device_name(device), "versions": measured_by(), "demo": demo(arguments.run)}
    result["reached"] = reached(arguments.run / "eval")
    result["profiles"] = {}
    for part in CONFIGS:
        case = {"part": part, "tokens": f"{arguments.run / 'tokens'}"}
        result["profiles"][part] = in_a_process("benchmarks.end_to_end", case)
    write_json(out, result)
    print(f"{table(result)}\n{out}")


def demo(run: Path) -> list[dict[str, Any]]:
    """The commands of the demo: seconds by the clock and of processors, and the most memory of one of its processes in MB."""
    measured = []
    for step in steps(run):
        print(step.title, flush=True)
        started = time.monotonic()
        process = subprocess.Popen([sys.executable, *words(step)], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise UserError(f"{step.title}: failed, see above")
        used = {"seconds": time.monotonic() - started, "cpu_seconds": usage.ru_utime + usage.ru_stime}
        measured.append({"step": step.title, **used, "peak_mb": usage.ru_maxrss / 1024})
    return measured


def reached(folder: Path) -> dict[str, dict[str, float]]:
    """The numbers that the demo reaches, of each part of its evaluation."""
    found = {path.parent.name: read_json(path)["metrics"] for path in sorted(folder.glob("*/result.json"))}
    return {part: {metric["label"]: metric["value"] for metric in metrics.values()} for part, metrics in found.items()}


def profiled(part: str, tokens: str) -> dict[str, Any]:
    """Some steps of a training under the profiler, and its data alone."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"run={folder}/run", "report_every=1000000", *([] if part == "tokenizer" else [f"tokens={tokens}"])]
        watch = Watch()
        if part == "tokenizer":
            config = load_config(Stage1Config, CONFIGS[part], settings)
            stage1.train(replace(config, images=(WARM + PROFILED + 1) * config.batch_size))
        else:
            config = load_config(Stage2Config, CONFIGS[part], settings)
            stage2.train(replace(config, images=(WARM + PROFILED + 1) * config.batch_size))
    rate = PROFILED * config.batch_size / watch.seconds
    data = data_rate(config)
    return {
        "batch_size": config.batch_size,
        "images_per_second_while_profiled": rate,
        "data_alone_images_per_second": data,
        "data_times_faster": data / rate,
        **watch.shares(),
    }


class Watch:
    """Profiles the steps WARM to WARM + PROFILED of the first optimizer that steps in this process."""

    def __init__(self) -> None:
        self.profiler = profile(activities=[ProfilerActivity.CPU])
        self.first: torch.optim.Optimizer | None = None
        self.count, self.started, self.seconds = 0, 0.0, 0.0
        self.hook = register_optimizer_step_post_hook(self.step)

    def step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """After a step of any optimizer."""
        self.first = self.first or optimizer
        if optimizer is not self.first:
            return
        self.count += 1
        if self.count == WARM:
            self.profiler.start()
            self.started = time.perf_counter()
        elif self.count == WARM + PROFILED:
            self.seconds = time.perf_counter() - self.started
            self.profiler.stop()
            self.hook.remove()

    def shares(self) -> dict[str, Any]:
        """Shares of the time by what was done, and of single operations by their own time."""
        spent: defaultdict[str, float] = defaultdict(float)
        events = [event for event in self.profiler.events() or () if event.cpu_parent is None]
        for event in events:
            spent[kind(event.name)] += event.cpu_time_total / 1e6
        own = sorted(self.profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)[:TOP]
        spent["outside torch"] = self.seconds - sum(spent.values())
        return {
            "shares": {name: seconds / self.seconds for name, seconds in spent.items()},
            "operations": {row.key: row.self_cpu_time_total / 1e6 / self.seconds for row in own},
        }


def kind(event: str) -> str:
    """What a profiler's outermost event belongs to."""
    for start, name in (("autograd::", "backward"), ("Optimizer.", "optimizer"), ("enumerate(DataLoader)", "waiting for data")):
        if event.startswith(start):
            return name
    return "forward and the rest"


def data_rate(config: Stage1Config | Stage2Config) -> float:
    """Images a second of the batches alone."""
    if isinstance(config, Stage1Config):
        dataset = ImageDataset(load_data(**config.data).train, config.image_size, config.flip, config.seed)
        batches = iter(image_batches(dataset, 0, 10**9, config.batch_size, 0, 1, config.workers))
    else:
        batches = iter(TokenStore(config.tokens).training_batches(0, 10**9, config.batch_size, config.seed, 0, 1))
    next(batches)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < DATA_SECONDS:
        next(batches)
        count += config.batch_size
    return count / (time.perf_counter() - started)


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [f"{row['step']:40s} {row['seconds']:7.1f} s  {row['peak_mb']:6.0f} MB" for row in result["demo"]]
    lines.append(f"{'in all':40s} {sum(row['seconds'] for row in result['demo']):7.1f} s")
    for part, found in result["profiles"].items():
        shares = ", ".join(f"{name} {share:.0%}" for name, share in found["shares"].items())
        lines.append(f"{part}: {shares}; the data alone is {found['data_times_faster']:.0f} times faster")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
