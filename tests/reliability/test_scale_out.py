"""1, 2 and 4 processes, with and without accumulation: the same training, tokens and samples; all end when one dies.

The processes are forks that find each other as a launcher's do; test_scale_out_launch.py starts real launchers.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.core.token_store import TokenStore

HERE = Path(__file__).parent
STAGE1, STAGE2 = "stage1_tokenizer.train", "stage2_prior.train"
KINDS = ("lgq", "vq_ema", "maskgit", "ar")
# eight steps, a snapshot after every second; the 19 images of validation are three batches, for two or four processes
SHORT = ["images=64", "report_every=8", "snapshot_every=16", "optim.warmup=8"]
SHORT_STAGE1 = [*SHORT, "loss.gan_start=0.25"]
SHORT_STAGE2 = [*SHORT, "validate_every=32", "validation_images=19"]
PARTS = {"perplexity": "codes", "codes_used": "codes", "gradient_norm": "gradients", "gan_weight": "gradients"}
# relative: float32 sums in another order, which eight steps amplify, in gradients most; in the first step nothing has yet
TOLERANCE = {"first step": 1e-5, "losses": 1e-3, "gradients": 1e-2, "codes": 1e-6, "weights": 1e-3}
LOST = "stopped: another process has ended or does not answer ("
REMEDY = "); see what it said, then run the same command again to go on"


def dying(how: str, step: int, rank: int, **more: str) -> dict[str, str]:
    """The environment of processes of which one ends in a step: see dying_process.py."""
    where = {"DEATH": how, "DEATH_STEP": f"{step}", "DEATH_RANK": f"{rank}"}
    return {"RUN_BEFORE": str(HERE / "dying_process.py"), **where, **more}


class Training:
    """A short training of one kind, by any number of processes."""

    def __init__(self, kind: str, chain, commands, settings) -> None:
        self.kind, self.commands = kind, commands
        if kind in ("maskgit", "ar"):
            self.command = (STAGE2, f"tokens={chain.tokens}", f"prior={kind}", *settings.stage2, *SHORT_STAGE2)
        else:
            self.command = (STAGE1, *settings.stage1, f"quantizer.name={kind}", *SHORT_STAGE1)

    def start(self, run: Path, processes: int, *more: str, environment: dict[str, str] | None = None) -> list[int]:
        arguments = (*self.command, f"run={run}", *more)
        if processes == 1:
            return [self.commands.start(*arguments, environment=environment)]
        return self.commands.start_group(processes, *arguments, environment=environment)

    def ended(self, run: Path, processes: int, *more: str, environment: dict[str, str] | None = None) -> list[Any]:
        """How each process ended."""
        return [self.commands.wait(pid) for pid in self.start(run, processes, *more, environment=environment)]

    def finish(self, run: Path, processes: int, *more: str) -> Path:
        results = self.ended(run, processes, *more)
        assert [result.code for result in results] == [0] * processes, "\n".join(result.err for result in results)
        return run


@pytest.fixture(scope="module")
def trainings(chain, commands, settings, tmp_path_factory):
    """By kind: its training, and what one process learns, which is made when it is first wanted."""
    folder, found = tmp_path_factory.mktemp("one"), {}

    def training(kind: str) -> tuple[Training, Path]:
        if kind not in found:
            made = Training(kind, chain, commands, settings)
            found[kind] = made, made.finish(folder / kind, 1)
        return found[kind]

    return training


def stats(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def weights(run: Path) -> torch.Tensor:
    """All of the finished model's, in one row."""
    (file,) = run.glob("*/diffusion_pytorch_model.safetensors")
    return torch.cat([value.flatten().double() for _, value in sorted(load_file(file).items())])


def differences(run: Path, other: Path) -> dict[str, float]:
    """The largest relative ones, of what is reported in the first step and in all, and of the weights (their norm's)."""
    found = dict.fromkeys(TOLERANCE, 0.0)
    assert [set(record) for record in stats(run)] == [set(record) for record in stats(other)]
    for number, (record, expected) in enumerate(zip(stats(run), stats(other), strict=True)):
        for name, value in expected.items():
            difference = abs(record[name] - value) / (abs(value) + 0.01)  # since small losses are differences of larger ones
            for part in (PARTS.get(name, "losses"), *(["first step"] if number == 0 else [])):
                found[part] = max(found[part], difference)
    ours, theirs = weights(run), weights(other)
    found["weights"] = (ours - theirs).norm().item() / theirs.norm().item()
    return {part: float(f"{value:.2g}") for part, value in found.items()}


def require_same_training(run: Path, other: Path) -> dict[str, float]:
    found = differences(run, other)
    assert all(found[part] <= limit for part, limit in TOLERANCE.items()), found
    return found


@pytest.mark.parametrize("kind, processes, images", [("vq_ema", 2, 3), ("maskgit", 4, 1)])
def test_processes_that_accumulate_learn_what_one_learns(trainings, tmp_path, kind, processes, images):
    training, one = trainings(kind)
    require_same_training(training.finish(tmp_path / "run", processes, f"micro_batch={images}"), one)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_any_processes_and_accumulation_learn_what_one_learns(trainings, note, tmp_path, kind):
    training, one = trainings(kind)
    for processes, images in ((1, 3), (2, None), (2, 3), (4, None), (4, 1)):
        name = f"{processes} processes" + (f", micro_batch={images}" if images else "")
        note("trainings", f"{kind}: {name}", None)
        run = training.finish(tmp_path / name.replace(" ", "_"), processes, *([f"micro_batch={images}"] if images else []))
        note("trainings", f"{kind}: {name}", require_same_training(run, one))


def test_a_process_that_is_killed_ends_the_others_and_any_number_goes_on(trainings, tmp_path):
    training, one = trainings("maskgit")
    run = tmp_path / "run"
    # killed in their fourth step, after the snapshot of two; then in the third after that; then to the end
    require_lost(training.ended(run, 2, environment=dying("kill", 3, rank=1)), 1, -signal.SIGKILL)
    assert newest(run) == 16
    (alone,) = training.ended(run, 1, environment=dying("kill", 3, rank=0))
    assert alone.code == -signal.SIGKILL and newest(run) == 32
    require_same_training(training.finish(run, 4), one)


def newest(run: Path) -> int:
    """Images seen in the newest snapshot."""
    return max((int(path.name) for path in run.glob("snapshots/*") if path.name.isdigit()), default=0)


def require_lost(ended: list[Any], rank: int, code: int) -> None:
    """That process ended with this code, and every other one with a line that says so, its own exit code, and no traceback."""
    assert ended[rank].code == code, ended[rank].err
    for other, result in enumerate(ended):
        if other != rank:
            assert result.code == 3 and "Traceback" not in result.err, result.err
            (line,) = result.error_lines
            assert line.startswith(f"process {other}: {LOST}" if other else LOST) and line.endswith(REMEDY), line


DEATHS = [("kill", -signal.SIGKILL), ("raise", 1), ("refuse", 2), ("stop", -signal.SIGKILL)]


@pytest.mark.slow
@pytest.mark.parametrize("how, code", DEATHS)
@pytest.mark.parametrize("kind, processes", [("lgq", 2), ("maskgit", 4)])
def test_however_one_ends_the_others_end_and_the_command_goes_on(trainings, note, tmp_path, kind, processes, how, code):
    training, one = trainings(kind)
    run, rank = tmp_path / "run", processes - 1
    note("deaths", f"{kind}: {processes} processes, {how}", None)
    pids = training.start(run, processes, environment=dying(how, 5, rank, LGQ_TIMEOUT="10"))
    others = [training.commands.wait(pid) for pid in pids[:rank]]
    if how == "stop":
        os.kill(pids[rank], signal.SIGKILL)  # as a launcher does in the end
    ended = [*others, training.commands.wait(pids[rank])]
    require_lost(ended, rank, code)
    said = ended[rank].err
    assert ("ZeroDivisionError: planted" in said, f"process {rank}: error: planted: 1; give 2\n" in said) == (
        how == "raise",
        how == "refuse",
    )
    assert newest(run) == 32
    found = require_same_training(training.finish(run, processes), one)
    note("deaths", f"{kind}: {processes} processes, {how}", found | {"the others said": ended[0].error_lines[0]})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_with_another_number_of_processes(trainings, note, tmp_path, kind):
    training, one = trainings(kind)
    run, name = tmp_path / "run", f"{kind}: 2, 1, 4 processes"
    note("resumed", name, None)
    for processes, images in ((2, 16), (1, 32)):
        training.ended(run, processes, environment=dying("kill", 3, rank=processes - 1))
        assert newest(run) == images
    note("resumed", name, require_same_training(training.finish(run, 4), one))


def test_a_process_whose_others_never_come_says_so(trainings, tmp_path):
    training, _ = trainings("maskgit")
    group = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    (alone,) = training.ended(tmp_path / "run", 1, environment={**group, "ACCELERATE_USE_CPU": "true", "LGQ_TIMEOUT": "1"})
    assert alone.code == 3 and alone.error_lines[-1].startswith(LOST) and alone.error_lines[-1].endswith(REMEDY), alone.err


def rows(store: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    opened = TokenStore(store)
    return {split: opened.batch(split, range(opened.images(split))) for split in opened.splits}


@pytest.mark.parametrize("processes", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_processes_encode_every_image_once(chain, commands, tmp_path, processes):
    # 120 and 60 images in shards of 16: the last ones have 8 and 12, and four processes have 3 shards each
    encode = ("pipeline.tokenize_dataset", "--tokenizer", chain.tokenizer, "--shard-images", 16, "--batch-size", 5)
    commands.together(processes, *encode, "--out", tmp_path / "tokens")
    expected = rows(chain.tokens)
    assert [len(expected[split][0]) for split in ("train", "validation")] == [120, 60]
    for split, found in rows(tmp_path / "tokens").items():
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected[split], strict=True))


def test_encoding_goes_on_with_another_number_of_processes_when_one_was_killed(chain, commands, tmp_path):
    encode = ("pipeline.tokenize_dataset", "--tokenizer", chain.tokenizer, "--shard-images", 16, "--batch-size", 16)
    command = (*encode, "--out", tmp_path / "tokens")
    pids = commands.start_group(2, *command, environment=dying("kill", 5, rank=0))  # in its third shard
    require_lost([commands.wait(pid) for pid in pids], 0, -signal.SIGKILL)
    assert len(list((tmp_path / "tokens").rglob("*.arrow"))) >= 2
    commands.together(4, *command)
    expected = rows(chain.tokens)
    for split, found in rows(tmp_path / "tokens").items():
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected[split], strict=True))


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_that_share_seeds_make_the_pictures_of_one(chain, commands, tmp_path, processes):
    def sample(seeds: range) -> int:
        out = ("--out", tmp_path / f"{seeds.start}-{seeds.stop}.png")
        return commands.start("pipeline.sample", "--class", 3, "--pipeline", chain.maskgit, "--seeds", written(seeds), *out)

    everything, share = range(7), -(-7 // processes)
    parts = [range(start, min(start + share, 7)) for start in range(0, 7, share)]
    for pid in [sample(seeds) for seeds in (everything, *parts)]:
        result = commands.wait(pid)
        assert result.code == 0, result.err
    whole = pictures(tmp_path / "0-7.png", 7)
    shared = [picture for part in parts for picture in pictures(tmp_path / f"{part.start}-{part.stop}.png", len(part))]
    assert len({picture.tobytes() for picture in whole}) > 1
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(shared, whole, strict=True))


def written(seeds: range) -> str:
    return f"{seeds.start}-{seeds.stop - 1}"


def pictures(file: Path, count: int) -> list[np.ndarray]:
    """The cells of a grid, row by row, without their frames."""
    grid = np.asarray(Image.open(file))
    columns = math.ceil(math.sqrt(count))
    zoom, gap = 8, 0 if count == 1 else 2
    small = grid[::zoom, ::zoom]
    step = 16 + gap
    return [small[gap + step * (n // columns) :][:16, gap + step * (n % columns) :][:, :16] for n in range(count)]


@pytest.mark.parametrize("what", ["settings", "progress", "tokens"])
def test_processes_that_were_started_differently_are_refused(chain, commands, settings, tmp_path, what):
    """Two machines, each with a disk of its own."""
    for machine in ("0", "1"):
        shutil.copytree(chain.tokens, tmp_path / machine / "tokens")
    if what == "progress":
        (tmp_path / "0/run/snapshots/000000000016").mkdir(parents=True)
    if what == "tokens":
        identity = tmp_path / "1/tokens/identity.json"
        identity.write_text(identity.read_text().replace('"preprocessing": "', '"preprocessing": "other, '))
    differ = f"import os, sys\nos.chdir({str(tmp_path)!r} + '/' + os.environ['RANK'])\n"
    if what == "settings":
        differ += "sys.argv.append('optim.lr=0.' + os.environ['RANK'])\n"
    (tmp_path / "differ.py").write_text(differ)
    training = Training("maskgit", chain, commands, settings)
    for result in training.ended(Path("run"), 2, "tokens=tokens", environment={"RUN_BEFORE": str(tmp_path / "differ.py")}):
        assert result.code == 2 and "Traceback" not in result.err
        assert f"error: launch: processes differ in {what}; start the same command everywhere, and " in result.error_lines[-1]
