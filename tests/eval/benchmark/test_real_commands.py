"""The launcher with the users' own commands: killed and started again it makes the same; the smallest benchmark runs."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.api import weights_sha256
from pipeline.core.config import CONFIGS

SMOKE = ["configs/benchmark/smoke.yaml", "quantizers=[fsq]", "--jobs", "1", "--threads", "1"]
RUNS = Path("runs/benchmark/smoke")


def stop(commands, config: Path, condition: Callable[[], bool], number: int):
    """Start a benchmark in its file's folder, send it a signal once the condition holds, or after minutes; wait for its end."""
    launcher = commands.start("eval.benchmark.__main__", config, *SMOKE[1:], folder=config.parent)
    try:
        commands.poll(condition, 300, launcher)
    except AssertionError:
        with suppress(ProcessLookupError):
            os.kill(launcher, number)
        raise
    os.kill(launcher, number)
    return commands.wait(launcher)


def test_killed_in_a_training_and_started_again_it_makes_the_same_tokenizer(commands, tmp_path):
    run = tmp_path / RUNS / "tokenizer/fsq-5b-s0"
    config = tmp_path / "long.yaml"  # seconds are left to kill it after its first snapshot
    config.write_text((CONFIGS / "benchmark/smoke.yaml").read_text().replace("  - images=160", "  - images=640", 1))
    stop(commands, config, lambda: any((run / "snapshots").glob("[0-9]*")), signal.SIGKILL)
    stopped = stop(commands, config, lambda: '"done"' in (run / "job/state.json").read_text(), signal.SIGTERM)
    assert stopped.code == 143
    log = (run / "job/log.txt").read_text()
    assert "stopped by SIGTERM" in log and json.loads((run / "job/state.json").read_text())["attempts"] == 2
    words = shlex.split(log.splitlines()[0].removeprefix("$ "))
    assert words[1].endswith("stage1_tokenizer/train.py")
    settings = [word for word in words[2:] if not word.startswith("run=")]
    commands.succeed("stage1_tokenizer.train", *settings, f"run={tmp_path / 'uninterrupted'}", folder=tmp_path)
    assert weights_sha256(run / "tokenizer") == weights_sha256(tmp_path / "uninterrupted/tokenizer")


@pytest.mark.skipif(importlib.util.find_spec("eval.benchmark.measure") is None, reason="there is nothing that measures")
def test_the_smallest_benchmark_runs_through_and_goes_on_from_its_results_alone(commands, tmp_path):
    done = commands.succeed("eval.benchmark.__main__", *SMOKE, "--clean", folder=tmp_path)
    assert "everything is measured" in done.out
    jobs = tmp_path / "results/benchmark/smoke/jobs"
    assert {path.parent.relative_to(jobs).as_posix() for path in jobs.rglob("result.json")} == {
        *("yardstick", "quality/fsq-5b-s0", "generation/fsq-5b-s0-maskgit")
    }
    contract = json.loads((jobs.parent / "contract.json").read_text())
    assert contract["measurements"] == ["generation/fsq-5b-s0-maskgit", "quality/fsq-5b-s0", "yardstick"]
    costs = json.loads((jobs / "generation/fsq-5b-s0-maskgit/job.json").read_text())["seconds"]
    assert {id.split("/")[0] for id in costs} == {"generation", "prior", "tokens", "tokenizer"} and min(costs.values()) > 0
    assert not list((tmp_path / RUNS).rglob("*.safetensors"))
    (tmp_path / "runs").rename(tmp_path / "gone")
    again = commands.succeed("eval.benchmark.__main__", *SMOKE, folder=tmp_path)
    assert "3 of 3 measurements are there" in again.out and "started" not in again.out
