"""Trainings of both stages as real processes: resumed, killed, split over processes and micro-batches, they are the same."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

STAGE1, STAGE2 = "stage1_tokenizer.train", "stage2_prior.train"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def stats(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def snapshots(run: Path) -> int:
    """Images seen in the newest snapshot."""
    return max((int(path.name) for path in run.glob("snapshots/*") if path.name.isdigit()), default=0)


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(chain, commands, settings, tmp_path, kind):
    module, part, arguments = kind
    straight = {"tokenizer": chain.tokenizer, "maskgit": chain.maskgit, "ar": chain.ar}[part]
    run = tmp_path / part
    command = (module, f"run={run}", *arguments)
    killed = commands.stop_when(commands.start(*command), lambda: snapshots(run) >= 40)
    assert killed.code == -signal.SIGKILL
    at_kill = snapshots(run)
    stopped = commands.stop_when(commands.start(*command), lambda: snapshots(run) >= at_kill + 80, signal.SIGTERM)
    assert stopped.code == 143
    assert stopped.error_lines == ["stopped by SIGTERM; run the same command again to go on"]
    assert at_kill + 80 <= snapshots(run) < 320, "the signal came too late to show anything"
    commands.succeed(*command)
    (model,) = run.glob(f"*/{WEIGHTS}")
    assert model.read_bytes() == (straight / model.relative_to(run)).read_bytes()
    assert (run / "stats.jsonl").read_bytes() == (straight / "stats.jsonl").read_bytes()


@pytest.fixture(params=["tokenizer", "maskgit", "ar"])
def kind(request, chain, settings):
    """The command, the part's name and the settings of every training."""
    if request.param == "tokenizer":
        return STAGE1, request.param, settings.stage1
    return STAGE2, request.param, [f"tokens={chain.tokens}", f"prior={request.param}", *settings.stage2]
