"""SIGTERM and SIGINT: every command stops with a stated exit code, keeps what it has, and goes on when it is run again."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core.command import Interrupted
from pipeline.core.snapshot import load_snapshot, snapshots
from pipeline.core.token_store import TokenStore
from pipeline.steps import Step, run_steps

STOPS = [(signal.SIGTERM, 143, "stopped by SIGTERM"), (signal.SIGINT, 130, "stopped by SIGINT")]
ENDLESS = ["images=4000000", "snapshot_every=4000000"]  # no snapshot but that of the signal


def stop(
    commands,
    number: signal.Signals,
    condition: Callable[[], bool],
    *command: object,
    environment: dict[str, str] | None = None,
):
    return commands.stop_when(commands.start(*command, environment=environment), condition, number)


@pytest.mark.parametrize("number, code, words", STOPS)
@pytest.mark.parametrize("part", ["tokenizer", "maskgit"])
def test_a_training_writes_a_snapshot_first(chain, commands, settings, tmp_path, part, number, code, words):
    run = tmp_path / "run"
    if part == "tokenizer":
        command = ["stage1_tokenizer.train", f"run={run}", *settings.stage1, *ENDLESS]
    else:
        tokens = [f"tokens={chain.tokens}", f"prior={part}", "validate_every=4000000"]
        command = ["stage2_prior.train", f"run={run}", *settings.stage2, *tokens, *ENDLESS]
    stopped = stop(commands, number, lambda: (run / "stats.jsonl").exists(), *command)
    assert stopped.code == code
    assert stopped.error_lines == [f"{words}; run the same command again to go on"]
    (written,) = snapshots(run / "snapshots")
    first = load_snapshot(written)["images_seen"]
    assert first == int(written.name) >= 24
    # run again, it goes on from there
    stop(commands, number, lambda: len((run / "stats.jsonl").read_text().splitlines()) > first // 24 + 2, *command)
    assert load_snapshot(snapshots(run / "snapshots")[-1])["images_seen"] > first


@pytest.mark.parametrize("number, code, words", STOPS)
@pytest.mark.parametrize("last, held", [("train/00001", "train/2"), ("validation/00006", "validation/7")])
def test_tokenization_keeps_its_whole_shards(chain, commands, settings, tmp_path, number, code, words, last, held):
    """The last one, validation/7, is one, too: the signal that comes in it is not lost."""
    out = tmp_path / "tokens"
    shards = ("--shard-images", 8, "--batch-size", 8)
    command = ("pipeline.tokenize_dataset", "--tokenizer", chain.tokenizer, "--out", out, *shards)
    stopped = stop(commands, number, lambda: (out / last).exists(), *command, environment=settings.hold(held))
    assert stopped.code == code and stopped.error_lines == [f"{words}; run the same command again to go on"]
    assert not (out / "store.json").exists() and not list(out.rglob(".*"))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.arrow")}
    assert before
    commands.succeed(*command)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items()), "what was there is not made again"
    assert TokenStore(out).images("train") == 120


@pytest.mark.parametrize("number, code, words", STOPS)
def test_an_evaluation_keeps_its_finished_parts(chain, commands, tmp_path, number, code, words):
    out = tmp_path / "eval"
    few = ["images=40", "reference_images=40", "kid_subsets=2", "shown_images=4", "shown_groups=2", "shown_per_group=2"]
    slow = ["batch_size=1"]  # so that seconds are left when the first part is there
    command = ("eval.run", *few, *slow, "--tokenizer", chain.tokenizer, "--priors", chain.ar, "--out", out)
    environment = {"LGQ_CACHE": f"{tmp_path}/cache"}
    pid = commands.start(*command, environment=environment)
    stopped = commands.stop_when(pid, lambda: (out / "validation/result.json").exists(), number)
    assert stopped.code == code and "Traceback" not in stopped.err
    assert stopped.error_lines[-1].endswith("run the same command again to go on")
    again = commands.succeed(*command, environment=environment)
    assert f"{out}/validation: finished before" in again.out
    assert {path.parent.name for path in Path(out).rglob("result.json")} >= {"real", "validation", "blurred", "reconstruction"}


SLOW_TO_STOP = """
import pathlib, signal, sys, time
def stop(number, frame):
    time.sleep(0.3)
    pathlib.Path(sys.argv[1], "snapshot").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(60)
"""


def test_a_signal_between_two_looks_at_a_child_waits_for_its_snapshot_too(monkeypatch, tmp_path):
    look, told = subprocess.Popen.poll, []

    def poll(child):
        if (tmp_path / "ready").exists() and not told:
            told.append(child.pid)
            raise Interrupted(signal.SIGTERM)
        return look(child)

    monkeypatch.setattr(subprocess.Popen, "poll", poll)
    with pytest.raises(Interrupted):
        run_steps([Step("train", ["python", "-c", SLOW_TO_STOP, str(tmp_path)])])
    assert told and (tmp_path / "snapshot").exists()
