"""Encoding a data set: killed and resumed, or split over processes, it gives the same store."""

from __future__ import annotations

import json
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline import tokenization
from pipeline.api import TokenStore, load_data, load_tokenizer
from pipeline.core.data.images import OrderedImages
from pipeline.core.files import read_json
from pipeline.tokenization import A_DAY, Job, data_settings, tokenize

TOKENIZE = "pipeline.tokenize_dataset"


def rows(store: Path) -> dict[str, dict[str, Any]]:
    return {name: split.to_dict() for name, split in TokenStore(store).splits.items()}  # pyright: ignore[reportReturnType]


@pytest.fixture
def command(chain, tmp_path):
    return [TOKENIZE, "--tokenizer", chain.tokenizer, "--out", tmp_path / "tokens", "--shard-images", 16, "--batch-size", 16]


def test_tokens_are_those_of_the_images(chain):
    store, tokenizer = TokenStore(chain.tokens), load_tokenizer(chain.tokenizer)
    data = load_data(name="shapes", image_size=16, train_per_class=12, validation_per_class=6)
    assert (store.images("train"), store.images("validation"), store.num_classes) == (120, 60, 10)
    image = OrderedImages(data.train, 16)[50]
    pixels = image["image"][None].float() / 127.5 - 1
    tokens, labels = store.batch("train", [50])
    assert tokens.equal(tokenizer.encode(pixels)) and labels.tolist() == [image["label"]]
    mirrored, _ = store.batch("train", [50], mirrored=(labels.numpy() >= 0))
    assert mirrored.equal(tokenizer.encode(pixels.flip(-1)))


def test_two_processes_make_the_same_store(chain, commands, command, tmp_path):
    commands.together(2, *command)
    assert rows(tmp_path / "tokens") == rows(chain.tokens)
    assert read_json(tmp_path / "tokens/store.json") == read_json(chain.tokens / "store.json")


def test_a_killed_and_resumed_command_makes_the_same_store(chain, commands, command, settings, tmp_path):
    held = commands.start(*command, environment=settings.hold("train/3"))
    killed = commands.stop_when(held, lambda: (tmp_path / "tokens/train/00002").exists())
    assert killed.code == -signal.SIGKILL and not (tmp_path / "tokens/store.json").exists()
    written = (tmp_path / "tokens/train/00000/state.json").stat().st_mtime_ns
    commands.succeed(*command)
    assert rows(tmp_path / "tokens") == rows(chain.tokens)
    assert (tmp_path / "tokens/train/00000/state.json").stat().st_mtime_ns == written, "a finished shard was made again"
    assert "finished before" in commands.succeed(*command).out
    assert not list((tmp_path / "tokens").rglob("*.partial"))


def test_what_a_dead_process_left_is_shared_by_all(runs, monkeypatch):
    """One of two processes did the shards 1, 3, 5 and 7 of training last time, and died: now it gets two of them, not all."""
    waits = []

    def first_of_two(*given: Any, patience: float) -> SimpleNamespace:
        waits.append(patience)
        alone = {"num_processes": 2, "process_index": 0, "is_main_process": True, "device": torch.device("cpu")}
        return SimpleNamespace(
            **alone, autocast=nullcontext, print=print, wait_for_everyone=lambda: None, end_training=lambda: None
        )

    monkeypatch.setattr(tokenization, "start_accelerator", first_of_two)
    monkeypatch.setattr(tokenization, "Interruption", lambda: SimpleNamespace(signal_number=0))  # pytest's own stays
    for number in (1, 3, 5, 7):
        shutil.rmtree(runs.tokens / f"train/{number:05d}")
    tokenize(Job(runs.tokenizer, None, (), runs.tokens, 16, 16, True, "no", 0, 0.01))
    assert sorted(int(folder.name) for folder in (runs.tokens / "train").iterdir()) == [0, 1, 2, 4, 5, 6]
    assert waits == [A_DAY]


def test_a_part_is_not_made_of_a_whole_store(commands, runs):
    again = (TOKENIZE, "--tokenizer", runs.tokenizer, "--shard-images", 16, "--batch-size", 16, "--part", "2/2")
    assert "finished before" in commands.succeed(*again, "--out", runs.tokens).out
    shutil.rmtree(runs.tokens / "train/00003")
    failed = commands.run(*again, "--out", runs.tokens)
    assert failed.code == 2 and len(failed.error_lines) == 1
    assert f"{runs.tokens}: a whole store, no part; choose another --out, or mend it without --part" in failed.err
    assert (runs.tokens / "store.json").exists() and not (runs.tokens / "part.json").exists()


def contents(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def test_parts_of_two_machines_join_to_the_same_store(chain, commands, command, tmp_path):
    parts = [tmp_path / f"part_{number}" for number in (1, 2)]
    for number, part in enumerate(parts, start=1):
        command[command.index("--out") + 1] = part
        said = commands.succeed(*command, "--part", f"{number}/2").out
        assert f"{part}: 6 of 12 shards" in said
    assert "finished before" in commands.succeed(*command, "--part", "2/2").out
    whole = commands.run(*command)
    assert (whole.code, len(whole.error_lines)) == (2, 1) and not (parts[1] / "store.json").exists()
    assert f"{parts[1]}: a part of a store; choose another --out, or go on with --part" in whole.err
    merge = [TOKENIZE, "--merge", *parts, "--out", tmp_path / "tokens"]
    assert "2 parts" in commands.succeed(*merge, "--dry-run").out and not (tmp_path / "tokens").exists()
    assert f"{tmp_path / 'tokens'}: 120 + 60 images" in commands.succeed(*merge).out
    assert contents(tmp_path / "tokens") == contents(chain.tokens)
    assert "12 shards, all as they were written" in commands.succeed(TOKENIZE, "--verify", tmp_path / "tokens").out


def test_a_damaged_shard_is_found_and_made_again_alone(chain, commands, runs):
    shard = runs.tokens / "train/00003"
    file = shard / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:-9] + b"!" + file.read_bytes()[-8:])
    found = commands.run(TOKENIZE, "--verify", runs.tokens)
    assert (found.code, len(found.error_lines)) == (2, 1) and f"{shard}: damaged shard" in found.err
    others = {path: path.stat().st_mtime_ns for path in runs.tokens.glob("*/*/*.arrow") if path != file}
    shutil.rmtree(shard)
    commands.succeed(TOKENIZE, "--tokenizer", runs.tokenizer, "--shard-images", 16, "--batch-size", 16)
    assert file.read_bytes() == (chain.tokens / "train/00003" / file.name).read_bytes()
    assert {path: path.stat().st_mtime_ns for path in others} == others
    assert read_json(runs.tokens / "store.json") == read_json(chain.tokens / "store.json")


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "1/2/3", "-1/2", "a/b", "1/0"])
def test_a_part_that_cannot_be(commands, part):
    failed = commands.run(TOKENIZE, f"--part={part}")
    assert failed.code == 2 and failed.error_lines == [f"error: --part: {part}; give K/N, part K of N, such as 2/8"]


def test_a_merge_says_where_to(commands, tmp_path):
    failed = commands.run(TOKENIZE, "--merge", tmp_path)
    assert failed.code == 2 and "--merge: no --out" in failed.err


def test_unreadable_images_are_left_out_and_named_even_by_a_later_command(chain, commands, command, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data/train" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (20, 17), (80 * number, 0, 0)).save(tmp_path / "data/train" / name / f"{number}.png")
    broken = tmp_path / "data/train/a/broken.png"
    broken.write_bytes(b"not an image")
    command = [*command, "--data", "folder", "data.validation_share=0.2", f"data.path={tmp_path / 'data'}"]
    command += ["--max-unreadable", "1"]
    command[command.index("--shard-images") + 1] = 1
    commands.succeed(*command)
    before = read_json(tmp_path / "tokens/store.json")
    (tmp_path / "tokens/store.json").unlink()
    commands.succeed(*command)  # all shards are there: the broken file is not opened again
    assert read_json(tmp_path / "tokens/store.json") == before
    store = TokenStore(tmp_path / "tokens")
    assert store.unreadable == [str(broken)] and store.images("train") + store.images("validation") == 6


def test_data_of_the_tokenizer_come_back_whatever_their_options_look_like(tmp_path):
    # each of these is something else to YAML than the text or the None that it is here
    given = {"name": "folder", "path": "/data: #7/no", "validation_share": 0.25}
    (tmp_path / "training.json").write_text(json.dumps({"data": given}))
    job = Job(None, None, (), None, 8, 8, True, "no", 0, 0.01)
    assert data_settings(job, tmp_path) == given
    given["path"] = None
    (tmp_path / "training.json").write_text(json.dumps({"data": given}))
    assert data_settings(job, tmp_path) == given
