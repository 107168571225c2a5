"""Snapshots of a training: a folder of safetensors and JSON, whole or absent, checked by hash, no pickle anywhere.

A state is nested dictionaries and lists of tensors, numbers, strings and None. Tensors go to `state.safetensors`, the rest,
with the tensors' names in their places, to `state.json`, which also holds the sha256 of the tensors.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.core.errors import UserError
from pipeline.core.files import new_folder, read_file, sha256, write_json

logger = logging.getLogger(__name__)


def save_snapshot(folder: Path, images_seen: int, state: Mapping[str, Any], keep: int = 2) -> Path:
    """Write `state` as `folder/<images seen>` and remove all but the newest `keep` snapshots (at least one).

    The new folder exists in whole before an old one goes.
    """
    tensors: dict[str, torch.Tensor] = {}
    skeleton = _take_tensors(state, "", tensors)
    path = folder / f"{images_seen:012d}"
    with new_folder(path) as aside:
        save_file(tensors, aside / "state.safetensors")
        write_json(aside / "state.json", {"sha256": sha256(aside / "state.safetensors"), "state": skeleton})
    for old in snapshots(folder)[: -max(1, keep)]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def snapshots(folder: Path) -> list[Path]:
    """The snapshots in a folder, oldest first."""
    return sorted(path for path in folder.glob("*") if path.is_dir() and path.name.isdigit())


def load_newest_snapshot(folder: Path) -> dict[str, Any] | None:
    """The state of the newest whole snapshot, None where there is none yet.

    A damaged snapshot is named and passed over for the one before it; UserError where all are damaged.
    """
    damaged = []
    for path in reversed(snapshots(folder)):
        try:
            state = load_snapshot(path)
        except UserError as error:
            damaged.append(str(error))
            continue
        for problem in damaged:
            logger.warning("%s; going on from %s", problem, path.name)
        return state
    if damaged:
        raise UserError(f"{damaged[0]}; no older snapshot is whole: delete {folder} to start afresh")
    return None


def load_snapshot(path: Path) -> dict[str, Any]:
    """The state in one snapshot folder; UserError names the damaged file."""
    file = path / "state.json"
    try:
        described = json.loads(read_file(file))
        file = path / "state.safetensors"
        if sha256(file) != described["sha256"]:
            raise UserError(f"{file}: damaged snapshot ({file.stat().st_size} bytes, wrong sha256)")
        tensors = load_file(file)
        return _put_tensors(described["state"], tensors)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{file}: damaged snapshot ({type(error).__name__})") from None


def _take_tensors(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        place = f"{len(tensors)}{place}"  # keys may look alike: 1 and "1", "a/b" and b in a
        # a copy of its own: safetensors refuses tensors that share memory (tied weights)
        tensors[place] = value.detach().to("cpu", copy=True).contiguous()
        return {"$tensor": place}
    if isinstance(value, Mapping):
        items = [[key, _take_tensors(item, f"{place}/{key}", tensors)] for key, item in value.items()]
        return dict(items) if all(isinstance(key, str) for key, _ in items) else {"$items": items}
    if isinstance(value, (list, tuple)):
        return [_take_tensors(item, f"{place}/{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a snapshot cannot hold {type(value).__name__} (at {place})")


def _put_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if "$tensor" in value:
            return tensors[value["$tensor"]]
        if "$items" in value:
            return {key: _put_tensors(item, tensors) for key, item in value["$items"]}
        return {key: _put_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_put_tensors(item, tensors) for item in value]
    return value
