"""FSDP2 (configs/accelerate/fsdp.yaml) as two processes on a CPU: what one process learns, and snapshots that anyone can read."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from pipeline.api import load_prior
from pipeline.core.snapshot import load_newest_snapshot

PROJECT = Path(__file__).resolve().parents[2]
STAGE1, STAGE2 = "stage1_tokenizer.train", "stage2_prior.train"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def sharding() -> dict[str, str]:
    """What accelerate's launcher tells its processes of the shipped settings."""
    file = str(PROJECT / "configs/accelerate/fsdp.yaml")
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", file, "train.py"]))
    environment = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in environment.items() if name.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))}


def stats(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def newest(run: Path) -> int:
    return max((int(path.name) for path in run.glob("snapshots/*") if path.name.isdigit()), default=0)


SHORT = ["images=64", "report_every=8", "validate_every=24", "validation_images=19", "optim.warmup=8", "snapshot_every=16"]


@pytest.mark.parametrize("prior", ["maskgit", "ar"])
def test_shards_learn_what_one_process_learns(chain, commands, settings, sharding, tmp_path, prior):
    arguments = [f"tokens={chain.tokens}", f"prior={prior}", *settings.stage2, *SHORT]
    commands.succeed(STAGE2, f"run={tmp_path / 'one'}", *arguments)
    more = ["micro_batch=3", "gradient_checkpointing=true"] if prior == "ar" else []
    commands.together(2, STAGE2, f"run={tmp_path / 'two'}", *arguments, *more, environment=sharding)
    ours, theirs = stats(tmp_path / "two"), stats(tmp_path / "one")
    assert [set(record) for record in ours] == [set(record) for record in theirs]
    for record, expected in zip(ours, theirs, strict=True):
        print(prior, max(abs(record[n] / expected[n] - 1) for n in record if expected[n]))
        torch.testing.assert_close(record, expected, rtol=2e-3, atol=2e-5)
    found, expected = (load_newest_snapshot(tmp_path / run / "snapshots") for run in ("two", "one"))
    assert found is not None and expected is not None
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-4)
    found, expected = (load_prior(tmp_path / run).state_dict() for run in ("two", "one"))
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-4)
