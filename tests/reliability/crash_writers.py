"""What writes files that must be whole, one at a time, as a command:  crash_writers NAME FOLDER

Each goes on from what `prepare` left in the folder, and from what a killed one left; `look` reads it as its users do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eval.results import Metric, Result, read_result, write_result
from pipeline.core.errors import UserError
from pipeline.core.files import new_folder, read_json, write_json
from pipeline.core.run_folder import RunFolder, read_stats
from pipeline.core.snapshot import load_newest_snapshot, save_snapshot
from pipeline.core.token_store import TokenIdentity, TokenStore, TokenStoreWriter


@dataclass(frozen=True)
class Writer:
    """`prepare` and `write` a folder; `look` gives what is in it, as something that can be compared."""

    prepare: Callable[[Path], Any]
    write: Callable[[Path], Any]
    look: Callable[[Path], Any]


def state(images: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(images)
    return {"images_seen": images, "weights": torch.randn(300, generator=draw), "moments": [torch.randn(7, 5, generator=draw)]}


def two_snapshots(folder: Path) -> None:
    for images in (8, 16):
        save_snapshot(folder, images, state(images))


def newest(folder: Path) -> int:
    found = load_newest_snapshot(folder)
    assert found is not None
    wanted = state(found["images_seen"])
    assert torch.equal(found["weights"], wanted["weights"]) and torch.equal(found["moments"][0], wanted["moments"][0])
    return found["images_seen"]


IDENTITY = TokenIdentity(
    spec={"sizes": [7], "scales": [[2, 2]], "image_size": [8, 8]},
    tokenizer="t",
    tokenizer_sha256="0" * 64,
    data={"name": "shapes"},
    data_fingerprint="f",
    preprocessing="p",
    mirrored=True,
    shard_images=3,
    class_names=["a", "b"],
    class_ids=["0", "1"],
    groups=[],
)


def write_tokens(folder: Path) -> None:
    writer = TokenStoreWriter(folder, IDENTITY)
    writer.open()
    if writer.finished():
        return
    for split, rows in (("train", (3,)), ("validation", (2,))):
        for shard, images in enumerate(rows):
            if not writer.has(split, shard):
                draw = torch.Generator().manual_seed(shard)
                tokens = torch.randint(7, (2, images, 4, 1), generator=draw)
                writer.write(split, shard, tokens[0], tokens[1], torch.arange(images) % 2, 3 * shard + torch.arange(images))
    writer.finish(["a.png"], [torch.arange(7.0)[:, None]])


def tokens(folder: Path) -> Any:
    try:
        store = TokenStore(folder)
    except UserError as error:
        assert "no token store here" in str(error) or "unfinished token store" in str(error), error
        return None
    rows = {split: [value.tolist() for value in store.batch(split, range(store.images(split)))] for split in store.splits}
    vectors = store.code_vectors()
    return rows, store.unreadable, vectors and [table.tolist() for table in vectors]


def result(value: float) -> Result:
    metric = Metric("gFD", value, 10, "lower")
    return Result("x", "generation", {"fd": metric}, {"name": "e"}, {"id": "r"}, {"seed": 0}, {}, ["eval"], "now", 1.0)


def log(folder: Path) -> None:
    run = RunFolder(folder)
    run.rewind(16)
    for images in (24, 32):
        run.log({"images": images, "loss": images / 3})


def first_log(folder: Path) -> None:
    for images in (8, 16, 24):
        RunFolder(folder).log({"images": images, "loss": images / 3})


def model(folder: Path) -> None:
    if not (folder / "model").exists():
        exported(folder, 1)


def exported(folder: Path, value: int) -> None:
    with new_folder(folder / "model") as aside:
        write_json(aside / "config.json", {"a": value})
        write_json(aside / "weights.json", [value] * 500)


def found(folder: Path) -> tuple[int, list[int]]:
    return read_json(folder / "model/config.json")["a"], read_json(folder / "model/weights.json")


WRITERS = {
    "snapshot": Writer(two_snapshots, lambda folder: save_snapshot(folder, 24, state(24)), newest),
    "tokens": Writer(lambda folder: None, write_tokens, tokens),
    "result": Writer(
        lambda folder: write_result(folder, result(1.0)),
        lambda folder: write_result(folder, result(2.0)),
        lambda folder: read_result(folder / "result.json").metrics["fd"].value,
    ),
    "statistics": Writer(first_log, log, lambda folder: [record["images"] for record in read_stats(folder)]),
    "model": Writer(
        lambda folder: None,
        model,
        lambda folder: sorted((file.name, file.stat().st_size) for file in (folder / "model").glob("*")),
    ),
    "replaced model": Writer(lambda folder: exported(folder, 1), lambda folder: exported(folder, 2), found),
}


def main() -> None:
    """Write."""
    name, folder = sys.argv[1:]
    WRITERS[name].write(Path(folder))
