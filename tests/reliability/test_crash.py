"""Killed at any byte and run again, every command ends with what an uninterrupted one leaves."""

from __future__ import annotations

import importlib
import json
import math
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.files import _exchange, write_json
from pipeline.core.snapshot import load_snapshot, snapshots
from pipeline.core.token_store import TokenStore

HERE = Path(__file__).parent
sys.path.append(str(HERE))
WRITERS = importlib.import_module("crash_writers").WRITERS
RESULTS = HERE.parents[1] / "results" / "crash.json"
KILLED, TOO_LARGE = -signal.SIGKILL, -signal.SIGXFSZ
EVAL = ["images=40", "reference_images=40", "kid_subsets=2", "shown_images=4", "shown_groups=2", "shown_per_group=2"]
SMOKE = ["configs/benchmark/smoke.yaml", "quantizers=[fsq]", "--jobs", "1", "--threads", "1"]


def dying(under: Path, **where: int | Path) -> dict[str, str]:
    """The environment of a command that dies at a place: see crash_at.py."""
    named = {f"CRASH_{name.upper()}": str(value) for name, value in where.items()}
    return {"RUN_BEFORE": str(HERE / "crash_at.py"), "CRASH_UNDER": str(under), **named}


def changes(commands, under: Path, count: Path, *command: Any) -> int:
    """How often a command changes something below a folder."""
    commands.succeed(*command, environment=dying(under, count=count))
    return int(count.read_text())


@dataclass(frozen=True)
class Writing:
    """A writer at work: `fresh` makes a folder as it was; what a reader sees of it `before` and, when it is done, `after`."""

    name: str
    commands: Any
    fresh: Callable[[], Path]
    before: Any
    after: Any
    largest: int  # bytes of a file

    def start(self, folder: Path, **where: int | Path) -> int:
        """The code that it ends with, where it dies or not at all."""
        pid = self.commands.start("crash_writers", self.name, folder, environment=dying(folder, **where))
        return self.commands.wait(pid).code

    def check(self, folder: Path) -> None:
        """What a reader sees now is whole, and the writer, started again, goes on to its end."""
        look = WRITERS[self.name].look
        seen = look(folder)
        assert seen in (self.before, self.after) or (self.name == "statistics" and seen == self.after[: len(seen)])
        assert self.start(folder) == 0
        assert look(folder) == self.after


@pytest.fixture(params=WRITERS)
def writing(request, commands, tmp_path):
    if request.param == "replaced model":
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
        if not _exchange(tmp_path / "one", tmp_path / "other"):
            pytest.skip("this file system cannot exchange two folders in one step")
    look = WRITERS[request.param].look

    def fresh() -> Path:
        folder = tmp_path / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        WRITERS[request.param].prepare(folder)
        return folder

    before, folder = look(fresh()), fresh()
    commands.succeed("crash_writers", request.param, folder, environment=dying(folder))
    largest = max(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Writing(request.param, commands, fresh, before, look(folder), largest)


def test_no_reader_sees_a_part_whatever_change_was_the_last(writing, commands, tmp_path):
    count = changes(commands, writing.fresh(), tmp_path / "count", "crash_writers", writing.name, writing.fresh())
    assert count >= 2 and writing.before != writing.after
    for event in range(count):
        folder = writing.fresh()
        assert writing.start(folder, event=event) == KILLED
        writing.check(folder)
        assert not [path for path in folder.rglob(".*") if path.is_dir()], "what a killed writer left is removed"


def test_no_reader_sees_a_part_whatever_byte_was_the_last(writing):
    deaths = 0
    for byte in sorted(random.Random(writing.name).sample(range(writing.largest), 6)):
        folder = writing.fresh()
        code = writing.start(folder, byte=byte)
        deaths += code == TOO_LARGE
        assert code in (0, TOO_LARGE)
        writing.check(folder)
    assert deaths >= 4


@dataclass
class Stage:
    """A command, and what it leaves in its folder, in a form that can be compared: `expected` uninterrupted, in `seconds`."""

    command: Callable[[Path], tuple[Any, ...]]
    outcome: Callable[[Path], Any]
    options: Callable[[Path], dict[str, Any]] = lambda folder: {}
    expected: Any = None
    seconds: float = math.inf
    largest: int = 0  # bytes of a file
    times: int = 0  # that it was run uninterrupted
    moments: list[float] = field(default_factory=list)  # of the kills, as shares of the uninterrupted time

    def start(self, commands, folder: Path, environment: dict[str, str] | None = None) -> int:
        options = self.options(folder)
        options["environment"] = options.get("environment", {}) | (environment or {})
        return commands.start(*self.command(folder), **options)

    def finish(self, commands, folder: Path) -> Any:
        """Run to the end; gives what it leaves."""
        result = commands.wait(self.start(commands, folder))
        assert result.code == 0, result.err
        return self.outcome(folder)


def trained(run: Path) -> dict[str, Any]:
    """Weights, statistics and the last snapshot, byte for byte: averages and moments are in it."""
    last = snapshots(run / "snapshots")[-1]
    load_snapshot(last)
    files = [*run.glob("*/*.safetensors"), *run.glob("*/config.json"), run / "stats.jsonl", *last.iterdir()]
    return {file.relative_to(run).as_posix(): file.read_bytes() for file in files}


def tokenized(out: Path) -> Any:
    store = TokenStore(out)
    rows = {split: [part.tolist() for part in store.batch(split, range(store.images(split)))] for split in store.splits}
    return rows, *((out / name).read_bytes() for name in ("identity.json", "store.json", "codebook.safetensors"))


def measured(out: Path) -> dict[str, Any]:
    """Every result without its times, and every picture."""
    found: dict[str, Any] = {}
    for file in sorted(out.rglob("*.json")):
        if file.name == "result.json":
            found[file.relative_to(out).as_posix()] = timeless(json.loads(file.read_text()), str(out))
    for file in sorted(out.rglob("*.png")):
        found[file.relative_to(out).as_posix()] = file.read_bytes()
    return found


TIMES = ("started", "second", "command", "versions", "cost", "rate", "speed", "_ms", "peak_mb")


def timeless(value: Any, out: str) -> Any:
    if isinstance(value, dict):
        return {key: timeless(item, out) for key, item in value.items() if not any(name in key for name in TIMES)}
    if isinstance(value, list):
        return [timeless(item, out) for item in value]
    return value.replace(out, "OUT") if isinstance(value, str) else value


@pytest.fixture(scope="module")
def stages(chain, commands, settings, tmp_path_factory) -> dict[str, Stage]:
    """Every command that works for long, with what it leaves uninterrupted."""
    tokens = f"tokens={chain.tokens}"
    encode = ("pipeline.tokenize_dataset", "--tokenizer", chain.tokenizer, "--shard-images", 16, "--batch-size", 16)
    judge = ("eval.run", *EVAL, "maskgit.steps=3", "--tokenizer", chain.tokenizer, "--priors", chain.maskgit)
    return {
        "tokenizer": Stage(lambda run: ("stage1_tokenizer.train", f"run={run}", *settings.stage1), trained),
        "tokens": Stage(lambda out: (*encode, "--out", out), tokenized),
        "maskgit": Stage(lambda run: ("stage2_prior.train", f"run={run}", tokens, "prior=maskgit", *settings.stage2), trained),
        "ar": Stage(lambda run: ("stage2_prior.train", f"run={run}", tokens, "prior=ar", *settings.stage2), trained),
        "evaluation": Stage(
            lambda out: (*judge, "--out", out / "eval"), measured, lambda out: {"environment": {"LGQ_CACHE": f"{out}/cache"}}
        ),
        "benchmark": Stage(
            lambda folder: ("eval.benchmark.__main__", *SMOKE),
            lambda folder: measured(folder / "results") | weights(folder / "runs"),
            lambda folder: {"folder": folder},
        ),
    }


def weights(runs: Path) -> dict[str, bytes]:
    files = sorted(runs.rglob("diffusion_pytorch_model.safetensors"))
    return {file.relative_to(runs).as_posix(): file.read_bytes() for file in files}


def uninterrupted(stage: Stage, commands, folder: Path) -> Stage:
    """The stage with what it leaves if nothing happens: the quick ones twice, since the first time shows the machine's load."""
    while stage.expected is None or (stage.times < 2 and stage.seconds < 20):
        stage.times += 1
        whole = folder / f"whole{stage.times}"
        whole.mkdir()
        began = time.monotonic()
        found = stage.finish(commands, whole)
        stage.seconds = min(stage.seconds, time.monotonic() - began)
        stage.largest = max(file.stat().st_size for file in whole.rglob("*") if file.is_file())
        assert stage.expected in (None, found)
        stage.expected = found
    return stage


def killed_at(stage: Stage, commands, folder: Path, moment: float) -> bool:
    """Start a command and kill it after `moment` seconds; gives whether it was still there."""
    pid, end = stage.start(commands, folder), time.monotonic() + moment
    try:
        while time.monotonic() < end:
            os.kill(pid, 0)
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    code = commands.wait(pid).code
    assert code in (0, KILLED)
    return code == KILLED


@pytest.mark.parametrize("name", ["tokenizer", "tokens", "maskgit", pytest.param("evaluation", marks=pytest.mark.slow)])
def test_killed_before_a_change_it_made_and_run_again_it_is_the_same(name, stages, commands, tmp_path):
    stage = uninterrupted(stages[name], commands, tmp_path)
    (tmp_path / "counted").mkdir()
    counted = dying(tmp_path, count=tmp_path.parent / f"{name}-count")
    assert commands.wait(stage.start(commands, tmp_path / "counted", counted)).code == 0
    count = int(Path(counted["CRASH_COUNT"]).read_text())
    run = tmp_path / "run"
    run.mkdir()
    # one time after the other, each time later than before
    for event in sorted(random.Random(name).sample(range(count // 2), 2)):
        assert commands.wait(stage.start(commands, run, dying(tmp_path, event=event))).code == KILLED
    assert stage.finish(commands, run) == stage.expected


KILLS = {"tokenizer": 12, "tokens": 10, "maskgit": 10, "ar": 8, "evaluation": 8, "benchmark": 8}


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS)
@pytest.mark.timeout(3000)
def test_killed_at_random_moments_and_run_again_it_is_the_same(name, stages, commands, tmp_path):
    stage = uninterrupted(stages[name], commands, tmp_path)
    record(name, "random moments", None)
    draw, runs = random.Random(f"moments of {name}"), 0
    while len(stage.moments) < KILLS[name]:
        run = tmp_path / f"run{runs}"
        run.mkdir()
        runs += 1
        for _ in range(4):  # in a row, without an end between them
            share = draw.random()
            if killed_at(stage, commands, run, share * stage.seconds):
                stage.moments.append(share)
        assert stage.finish(commands, run) == stage.expected
        shutil.rmtree(run)
    record(name, "random moments", {"kills": len(stage.moments), "runs": runs, "seconds": round(stage.seconds, 1),
                                    "moments": [round(share, 3) for share in stage.moments]})  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tokenizer", "tokens", "maskgit", "evaluation"])
@pytest.mark.timeout(3000)
def test_killed_inside_its_writes_and_run_again_it_is_the_same(name, stages, commands, tmp_path):
    stage = uninterrupted(stages[name], commands, tmp_path)
    record(name, "inside a write", None)
    draw, kills = random.Random(f"bytes of {name}"), []
    for number in range(6):
        byte, run = draw.randrange(256, stage.largest), tmp_path / f"run{number}"
        run.mkdir()
        code = commands.wait(stage.start(commands, run, dying(tmp_path, byte=byte))).code
        assert code in (0, TOO_LARGE)
        kills += [byte] if code == TOO_LARGE else []
        assert stage.finish(commands, run) == stage.expected
    assert kills
    record(name, "inside a write", {"kills": len(kills), "bytes": kills, "of": stage.largest})


def record(name: str, how: str, found: dict[str, Any] | None) -> None:
    """Note in the result file what was tried and ended as it should; None before it is tried, so that no old success stays."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"what": __doc__, "kills": 0, "stages": {}}
    parts = known["stages"].setdefault(name, {})
    parts.pop(how, None)
    if found is not None:
        parts[how] = found | {"outcome": "equal to the uninterrupted run"}
    known["kills"] = sum(part["kills"] for parts in known["stages"].values() for part in parts.values())
    write_json(RESULTS, known)
