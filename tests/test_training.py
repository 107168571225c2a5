"""Trainings of both stages as real processes: resumed, killed, split over processes and micro-batches, they are the same."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.core.token_store import TokenStore
from stage2_prior.training import validation_rows

STAGE1, STAGE2 = "stage1_tokenizer.train", "stage2_prior.train"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def stats(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def reported_since(run: Path) -> bool:
    """Whether there are statistics of later images than the newest snapshot's, which a resumed run has to drop."""
    file = run / "stats.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return bool(lines) and lines[-1].endswith("\n") and json.loads(lines[-1])["images"] > snapshots(run) > 0


def snapshots(run: Path) -> int:
    """Images seen in the newest snapshot."""
    return max((int(path.name) for path in run.glob("snapshots/*") if path.name.isdigit()), default=0)


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(chain, commands, settings, tmp_path, kind):
    module, part, arguments = kind
    straight = {"tokenizer": chain.tokenizer, "maskgit": chain.maskgit, "ar": chain.ar}[part]
    run = tmp_path / part
    command = (module, f"run={run}", *arguments)
    # a snapshot at 40, a report at 48
    killed = commands.stop_when(commands.start(*command, environment=settings.hold(48)), lambda: reported_since(run))
    assert killed.code == -signal.SIGKILL
    at_kill = snapshots(run)
    held = commands.start(*command, environment=settings.hold(at_kill + 80))
    stopped = commands.stop_when(held, lambda: snapshots(run) >= at_kill + 80, signal.SIGTERM)
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


# one report per step, so that a difference shows where it begins; the adversarial loss sets in after two of eight steps
SHORT = ["images=64", "report_every=8", "optim.warmup=8", "loss.gan_start=0.25"]
SHORT_PRIOR = ["images=64", "report_every=8", "optim.warmup=8", "validate_every=32"]


@pytest.fixture(scope="module")
def one_process(chain, commands, settings, tmp_path_factory):
    """Short trainings in one process, all images at a time: the folders by name."""
    folder = tmp_path_factory.mktemp("one")
    for quantizer in ("lgq", "vq_ema"):
        commands.succeed(STAGE1, f"run={folder / quantizer}", *settings.stage1, f"quantizer.name={quantizer}", *SHORT)
    for prior in ("maskgit", "ar"):
        arguments = [f"tokens={chain.tokens}", f"prior={prior}", *settings.stage2, *SHORT_PRIOR]
        commands.succeed(STAGE2, f"run={folder / prior}", *arguments)
    return folder


def assert_same_statistics(run: Path, other: Path) -> None:
    ours, theirs = stats(run), stats(other)
    assert [set(record) for record in ours] == [set(record) for record in theirs]
    for name in ours[0].keys() | ours[-1].keys():
        values, expected = ([record.get(name, 0) for record in records] for records in (ours, theirs))
        found, wanted = ({name: torch.tensor(column)} for column in (values, expected))
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("quantizer", ["lgq", "vq_ema"])
@pytest.mark.parametrize("how", ["2 processes", "micro-batches"])
def test_a_tokenizer_learns_the_same_whatever_splits_its_batch(one_process, commands, settings, tmp_path, quantizer, how):
    arguments = [f"run={tmp_path / 'run'}", *settings.stage1, f"quantizer.name={quantizer}", *SHORT]
    if how == "micro-batches":
        commands.succeed(STAGE1, *arguments, "micro_batch=4")
    else:
        commands.together(2, STAGE1, *arguments)
    assert "gan" in stats(tmp_path / "run")[-1]
    assert_same_statistics(tmp_path / "run", one_process / quantizer)


@pytest.mark.parametrize("prior", ["maskgit", "ar"])
@pytest.mark.parametrize("how", ["2 processes", "micro-batches"])
def test_a_prior_learns_the_same_whatever_splits_its_batch(chain, one_process, commands, settings, tmp_path, prior, how):
    arguments = [f"run={tmp_path / 'run'}", f"tokens={chain.tokens}", f"prior={prior}", *settings.stage2, *SHORT_PRIOR]
    if how == "micro-batches":
        commands.succeed(STAGE2, *arguments, "micro_batch=3")
    else:
        commands.together(2, STAGE2, *arguments)
    assert_same_statistics(tmp_path / "run", one_process / prior)


def test_two_processes_stop_together(chain, commands, settings, tmp_path):
    # a signal reaches them in different steps: here it reaches only the second one
    run = tmp_path / "run"
    arguments = [f"run={run}", f"tokens={chain.tokens}", "prior=ar", *settings.stage2, "images=4000"]
    first, second = commands.start_group(2, STAGE2, *arguments)
    stopped = commands.stop_when(second, lambda: snapshots(run) >= 40, signal.SIGTERM)
    assert (commands.wait(first).code, stopped.code) == (143, 143)
    assert 40 < snapshots(run) < 4000


def test_validation_happens_at_its_own_interval(chain):
    # 160 is no multiple of 24, the interval of the reports
    assert [record["images"] for record in stats(chain.ar) if "validation_bits_per_token" in record] == [160, 320]


def test_validation_is_of_images_of_all_classes(chain):
    """A store has them in the order of their classes: the first of them are of few."""
    store = TokenStore(chain.tokens)
    _, labels = store.batch("validation", range(store.images("validation")))
    assert labels.equal(labels.sort().values), "or there is nothing to show"
    few = validation_rows(store, 40)
    assert few == validation_rows(store, 40) and len(set(few)) == 40
    first, chosen = (len(labels[list(rows)].unique()) for rows in (range(40), few))
    assert first < chosen == len(labels.unique())
    assert validation_rows(store, 10**9) == list(range(store.images("validation")))
