"""Saved models: cut, flipped, of other names, shapes and numbers, with bombs under every name that a loader may open."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.api import load_pipeline, load_prior, load_tokenizer
from pipeline.core.snapshot import load_newest_snapshot, snapshots

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 3, 17, 2**40, 10**30, 0.5, -1.5, "", "text", "fsq", [], [1], [[]], [3, 4], [10**9], {}),
    {"name": "vq"},
]
# what diffusers, transformers, torch and datasets may look for
NAMES = [
    *("diffusion_pytorch_model.bin", "pytorch_model.bin", "model.safetensors"),
    "diffusion_pytorch_model.safetensors.index.json",
    *("diffusion_pytorch_model.bin.index.json", "pytorch_model.bin.index.json", "model.bin", "model.pt", "weights.pth"),
    "pipeline.py",
    *("modeling_image_tokens.py", "tokenizer.py", "prior.py", "__init__.py", "conftest.py", "sitecustomize.py"),
    "training.json",
    *("tokens.json", "model_index.json", "scheduler_config.json", "generation_config.json", "dataset_info.json", "state.json"),
]


@pytest.fixture(scope="module")
def saved(chain, tmp_path_factory):
    """Folders of a tokenizer, two priors and a pipeline, each with what loads it."""
    folder = tmp_path_factory.mktemp("saved")
    load_pipeline(chain.maskgit).save_pretrained(folder / "pipeline")
    parts = {"tokenizer": chain.tokenizer / "tokenizer", "maskgit": chain.maskgit / "prior", "ar": chain.ar / "prior"}
    for name, path in parts.items():
        shutil.copytree(path, folder / name)
    loads = {"tokenizer": load_tokenizer, "maskgit": load_prior, "ar": load_prior, "pipeline": load_pipeline}
    return {name: (folder / name, load) for name, load in loads.items()}


def cut(path: Path, random: Random) -> None:
    content = path.read_bytes()
    path.write_bytes(
        content[: random.choice([0, 1, 7, 8, 9, 40, len(content) // 2, len(content) - 1, random.randrange(len(content))])]
    )


def flip_header(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(random.choice([1, 1, 5])):
        content[random.randrange(min(len(content), 400))] = random.randrange(256)
    path.write_bytes(content)


def other_tensors(path: Path, random: Random) -> None:
    tensors = load_file(path)
    key = random.choice(sorted(tensors))
    tensor = tensors[key]
    change = random.randrange(8)
    if change == 0:
        del tensors[key]
    elif change == 1:
        tensors[f"{key}.more"] = tensor
    elif change == 2:
        tensors[key] = tensor[None]
    elif change == 3:
        tensors[key] = torch.cat([tensor.flatten(), tensor.flatten()])
    elif change == 4:
        tensors[key] = tensor.to(torch.int32) if tensor.is_floating_point() else tensor.float()
    elif change == 5:
        tensors[key] = torch.full_like(tensor.float(), random.choice([torch.nan, torch.inf, -torch.inf]))
    elif change == 6:
        tensors[random.choice(["x", "", "é", "a\nb"])] = tensors.pop(key)
    else:
        tensors = {}
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path)


def other_config(path: Path, random: Random) -> None:
    if random.random() < 0.2:
        texts = [
            b"",
            b"{",
            b"[]",
            b"null",
            b"3",
            b"\xff",
            b"[" * 50000,
            b'{"a": 1}',
            b'"' + b"x" * 10**6 + b'"',
            b"9" * 5000,
            b"NaN",
        ]
        path.write_bytes(random.choice(texts))
        return
    config = json.loads(path.read_text())
    inner = random.choice([config, *(value for value in config.values() if isinstance(value, dict))])
    key = random.choice([*sorted(inner), "more", "_class_name", "quantization_config", "auto_map"])
    if random.random() < 0.3:
        inner.pop(key, None)
    else:
        inner[key] = random.choice(VALUES)
    path.write_text(json.dumps(config))


def test_damaged_models(saved, fuzzer, tmp_path, scale):
    for number in range(120 * scale):
        random = fuzzer.random(number)
        name = random.choice(sorted(saved))
        folder, load = tmp_path / str(number), saved[name][1]
        shutil.copytree(saved[name][0], folder)
        damage = random.choice([cut, cut, flip_header, other_tensors, other_tensors, other_config, other_config, other_config])
        suffix = "*.safetensors" if damage in (flip_header, other_tensors) else random.choice(["*.safetensors", "*.json"])
        suffix = "*config.json" if damage is other_config else suffix
        path = random.choice(sorted(folder.rglob(suffix)))
        before = path.read_bytes()
        damage(path, random)
        case = f"{number} {name} {damage.__name__} {path.relative_to(folder)}"
        model = fuzzer.attempt(case, load, folder)
        same = damage is flip_header and model is not None and same_tensors(path, saved[name][0] / path.relative_to(folder))
        harmless = same or path.read_bytes().strip() == before.strip() or path.name not in (CONFIG, WEIGHTS)
        if model is not None and not harmless and damage is not other_config:
            fuzzer.fault(case, "loads")
        shutil.rmtree(folder)


def same_tensors(path: Path, other: Path) -> bool:
    """Whether a header says the same in other bytes: a flipped letter of what is not read."""
    ours, theirs = load_file(path), load_file(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def torch_file(pickle: bytes) -> bytes:
    """What torch.save writes, around a pickle."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/version", "3\n")
    return content.getvalue()


def test_bombs_under_every_name(saved, fuzzer, tmp_path):
    bombs = fuzzer.bombs | {"torch": torch_file(fuzzer.bombs["pickle 2"])}
    for name, (path, load) in saved.items():
        for kind, bomb in bombs.items():
            # one folder with all of them, beside the true files and then instead of one after the other
            needed = {file.relative_to(path) for file in path.rglob("*") if file.name in (CONFIG, WEIGHTS, "model_index.json")}
            folder = tmp_path / f"{name} {kind}"
            shutil.copytree(path, folder)
            parts = [folder, *(part for part in (folder / "tokenizer", folder / "prior") if part.is_dir())]
            for part in parts:
                for file in NAMES:
                    if not (part / file).exists():
                        (part / file).write_bytes(bomb)
            fuzzer.attempt(f"{folder.name}, beside", load, folder)
            for file in (folder / each for each in needed):
                original = file.read_bytes()
                file.write_bytes(bomb)
                fuzzer.require(
                    f"{folder.name} {file.name}", fuzzer.attempt(f"{folder.name} {file.name}", load, folder) is None, "loads"
                )
                file.unlink()
                fuzzer.attempt(f"{folder.name} without {file.name}", load, folder)
                file.write_bytes(original)


def test_indices_that_name_modules_and_programs(saved, fuzzer, tmp_path):
    path, load = saved["pipeline"]
    index = json.loads((path / "model_index.json").read_text())
    values = [
        "antigravity",
        ["pipeline", "ImageGenerator"],
        ["os", "system"],
        ["program", "X"],
        ["diffusers", "nothing"],
        None,
        3,
        [],
        {},
    ]
    for number, value in enumerate(values):
        for key in ("_class_name", "tokenizer", "prior", "class_names", "class_ids", "groups", "_name_or_path", "auto_map"):
            folder = tmp_path / f"{number} {key}"
            shutil.copytree(path, folder)
            for name in ("pipeline.py", "program.py", "tokenizer/program.py", "prior/modeling.py"):
                (folder / name).write_bytes(fuzzer.bombs["program"])
            (folder / "model_index.json").write_text(json.dumps(index | {key: value}))
            fuzzer.attempt(f"{key}={value}", load, folder)


def test_damaged_snapshots(chain, fuzzer, tmp_path, scale):
    bombs = list(fuzzer.bombs.values())
    for number in range(30 * scale):
        random = fuzzer.random(number)
        folder = tmp_path / str(number)
        shutil.copytree(random.choice([chain.tokenizer, chain.ar]) / "snapshots", folder)
        newest = snapshots(folder)[-1]
        path = random.choice(sorted(newest.iterdir()))
        before = path.read_bytes()
        damage = random.choice([cut, flip_header, lambda path, random: path.write_bytes(random.choice(bombs))])
        damage(path, random)
        state = fuzzer.attempt(f"{number} {path.name}", load_newest_snapshot, folder)
        # the one before the damaged one, which must not come back in part
        if state is not None and path.read_bytes() != before and path.suffix == ".safetensors":
            fuzzer.require(number, state["images_seen"] == int(snapshots(folder)[-2].name), "takes the damaged one")
        shutil.rmtree(folder)
