"""FSDP2 (configs/accelerate/fsdp.yaml) as two processes on a CPU: what one process learns, snapshots that either can read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.api import load_prior
from pipeline.core.snapshot import load_newest_snapshot

TRAIN = "stage2_prior.train"
# a snapshot falls between two reports; the 19 validation images are three batches, which two processes cannot share evenly
SHORT = ["images=64", "report_every=24", "validate_every=24", "validation_images=19", "optim.warmup=8", "snapshot_every=16"]


@pytest.fixture(scope="module", params=["maskgit", "ar"])
def learned(request, chain, commands, settings, sharding, tmp_path_factory):
    """Short trainings of a prior: their settings, and the folders `one`, of one process, and `shards`, of two with shards."""
    folder = tmp_path_factory.mktemp(request.param)
    arguments = [f"tokens={chain.tokens}", f"prior={request.param}", *settings.stage2, *SHORT]
    if request.param == "ar":
        arguments += ["micro_batch=3", "gradient_checkpointing=true", "prior.head=geometric"]
    commands.succeed(TRAIN, f"run={folder / 'one'}", *arguments)
    commands.together(2, TRAIN, f"run={folder / 'shards'}", *arguments, environment=sharding)
    return arguments, folder / "one", folder / "shards"


def stats(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def back_at(run: Path, images: int, copy: Path) -> Path:
    """A copy of a finished run as it was when it had just taken its snapshot at so many images."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "prior")
    for later in (path for path in copy.glob("snapshots/*") if int(path.name) > images):
        shutil.rmtree(later)
    return copy


def assert_same_training(run: Path, other: Path) -> None:
    """Equal statistics, last snapshots (averages and AdamW's state too) and results, but for the order of sums."""
    for record, expected in zip(stats(run), stats(other), strict=True):
        torch.testing.assert_close(record, expected, rtol=1e-4, atol=1e-6)
    ours, theirs = (load_newest_snapshot(path / "snapshots") for path in (run, other))
    assert ours is not None and theirs is not None and len(theirs["optimizer"]["state"]) == len(theirs["ema"]["shadow_params"])
    for part in ("prior", "optimizer", "ema"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=1e-3, atol=1e-5)
    found, expected = (load_prior(path).state_dict() for path in (run, other))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_shards_learn_what_one_process_learns(learned):
    _, one, shards = learned
    assert_same_training(shards, one)


def test_shards_go_on_from_their_snapshot_bit_for_bit(learned, commands, sharding, tmp_path):
    arguments, _, shards = learned
    run = back_at(shards, 48, tmp_path / "run")
    commands.together(2, TRAIN, f"run={run}", *arguments, environment=sharding)
    for file in ("stats.jsonl", "prior/diffusion_pytorch_model.safetensors", f"snapshots/{64:012d}/state.safetensors"):
        assert (run / file).read_bytes() == (shards / file).read_bytes()


def test_a_run_goes_on_with_and_without_shards(learned, commands, sharding, tmp_path):
    arguments, one, shards = learned
    unsharded = back_at(shards, 48, tmp_path / "unsharded")
    commands.succeed(TRAIN, f"run={unsharded}", *arguments)
    assert_same_training(unsharded, one)
    sharded = back_at(one, 48, tmp_path / "sharded")
    commands.together(2, TRAIN, f"run={sharded}", *arguments, environment=sharding)
    assert_same_training(sharded, one)


def test_the_launcher_decides_what_is_sharded(chain, commands, settings, sharding, tmp_path):
    wrong = sharding | {"FSDP_TRANSFORMER_CLS_TO_WRAP": "Sheep"}
    arguments = [f"run={tmp_path / 'run'}", f"tokens={chain.tokens}", "prior=ar", *settings.stage2]
    for pid in commands.start_group(2, TRAIN, *arguments, environment=wrong):
        assert "Could not find the transformer layer class Sheep" in commands.wait(pid).err


def test_only_priors_are_sharded_and_only_by_the_second_fsdp(chain, commands, settings, sharding, tmp_path):
    result = commands.run("stage1_tokenizer.train", f"run={tmp_path / 'a'}", *settings.stage1, environment=sharding)
    assert result.code == 2 and "FSDP is for the training of priors" in result.err
    arguments = [f"run={tmp_path / 'b'}", f"tokens={chain.tokens}", "prior=ar", *settings.stage2]
    result = commands.run(TRAIN, *arguments, environment=sharding | {"FSDP_VERSION": "1"})
    assert result.code == 2 and "FSDP 1 is not supported" in result.err
