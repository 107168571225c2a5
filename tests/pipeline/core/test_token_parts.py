"""Parts of a token store, made apart: joined they are the store that one machine makes; what does not fit is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.core import token_parts
from pipeline.core.errors import UserError
from pipeline.core.token_parts import check_parts, mark_part, merge_parts
from pipeline.core.token_store import TokenIdentity, TokenStore, TokenStoreWriter, shards_of

IMAGES = {"train": 22, "validation": 5}
UNREADABLE = {"train": [3, 8, 9, 10, 11], "validation": [0]}  # of the shard from 8 to 11 no image can be read
IDENTITY = TokenIdentity(
    spec={"sizes": [70], "scales": [[2, 2]], "image_size": [8, 8]},
    tokenizer="runs/tokenizer",
    tokenizer_sha256="abc",
    data={"name": "folder", "path": "/here"},
    data_fingerprint="f",
    preprocessing="none",
    mirrored=True,
    shard_images=4,
    class_names=["a", "b"],
    class_ids=["a", "b"],
    groups=["a", "b"],
)


def make(path: Path, part: int = 1, parts: int = 1, identity: TokenIdentity = IDENTITY) -> Path:
    """A store, or every `parts`-th shard of it, as a machine would make it."""
    writer = TokenStoreWriter(path, identity)
    writer.open()
    for shard in shards_of(IMAGES, identity.shard_images)[part - 1 :: parts]:
        rows = [row for row in range(shard.start, shard.stop) if row not in UNREADABLE[shard.split]]
        index = torch.tensor(rows, dtype=torch.int64)
        tokens = ((index[:, None] * 7 + torch.arange(4)) % 70)[..., None]
        writer.write(shard.split, shard.number, tokens, tokens.flip(1), index % 2, index)
    unreadable = [f"{split} {row}" for split, images in IMAGES.items() for row in writer.missing(split, images)]
    vectors = [torch.arange(140.0).view(70, 2)]
    if parts == 1:
        writer.finish(unreadable, vectors)
    else:
        writer.write_code_vectors(vectors)
        mark_part(path, IMAGES, unreadable)
    return path


def contents(path: Path) -> dict[str, bytes | None]:
    """Every file and every folder."""
    found = {str(file.relative_to(path)): file.read_bytes() if file.is_file() else None for file in path.rglob("*")}
    assert found
    return found


@pytest.fixture
def parts(tmp_path) -> list[Path]:
    return [make(tmp_path / f"part{number}", number, 3) for number in (1, 2, 3)]


def test_joined_parts_are_the_store_of_one_machine(parts, tmp_path):
    whole = contents(make(tmp_path / "whole"))
    assert merge_parts(parts[::-1], tmp_path / "joined").images("train") == 17  # in any order
    assert contents(tmp_path / "joined") == whole
    assert TokenStore(tmp_path / "joined").verify() == 7  # of eight shards, one is empty
    merge_parts(parts, tmp_path / "joined")
    assert contents(tmp_path / "joined") == whole


def test_parts_of_another_number_fit_too(tmp_path):
    halves = [make(tmp_path / "half", 1, 2), *(make(tmp_path / f"quarter{number}", number, 4) for number in (2, 4))]
    merge_parts(halves, tmp_path / "joined")
    assert contents(tmp_path / "joined") == contents(make(tmp_path / "whole"))


def test_a_merge_that_was_stopped_goes_on(parts, tmp_path, monkeypatch):
    copied, copy = list[Path](), token_parts._copy

    def copy_three(source: Path, target: Path) -> None:
        if len(copied) == 3:
            raise KeyboardInterrupt
        copied.append(target)
        copy(source, target)

    monkeypatch.setattr(token_parts, "_copy", copy_three)
    with pytest.raises(KeyboardInterrupt):
        merge_parts(parts, tmp_path / "joined")
    with pytest.raises(UserError, match="unfinished token store"):
        TokenStore(tmp_path / "joined")
    monkeypatch.setattr(token_parts, "_copy", copy)
    before = [target.stat().st_mtime_ns for target in copied]
    merge_parts(parts, tmp_path / "joined")
    assert [target.stat().st_mtime_ns for target in copied] == before
    assert contents(tmp_path / "joined") == contents(make(tmp_path / "whole"))


def test_machines_may_call_the_tokenizer_and_the_data_by_other_paths(parts, tmp_path):
    shutil.rmtree(parts[1])
    there = dataclasses.replace(IDENTITY, tokenizer="/mnt/t", data={"name": "folder", "path": "/there"})
    make(parts[1], 2, 3, there)
    merge_parts(parts, tmp_path / "joined")
    assert contents(tmp_path / "joined") == contents(make(tmp_path / "whole"))


def edit(file: str, **changes: Any) -> Callable[[Path], None]:
    def spoil(part: Path) -> None:
        values = json.loads((part / file).read_text())
        (part / file).write_text(json.dumps(values | changes))

    return spoil


def flip(part: Path, name: str = "train/00001/data-00000-of-00001.arrow") -> None:
    file = part / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def other_codebook(part: Path) -> None:
    flip(part, "codebook.safetensors")
    marked = json.loads((part / "part.json").read_text())
    mark_part(part, marked["images"], marked["unreadable"])


def forget_codebook(part: Path) -> None:
    marked = json.loads((part / "part.json").read_text())
    del marked["codebook_sha256"]
    (part / "part.json").write_text(json.dumps(marked))


def misplaced(part: Path) -> None:
    """Shard 4 under the number 1 and the other way round."""
    (part / "train/00001").rename(part / "train/aside")
    (part / "train/00004").rename(part / "train/00001")
    (part / "train/aside").rename(part / "train/00004")


SPOILT = {  # the second of three parts: shards 1 and 4 of training, 1 of validation
    "not finished": (lambda part: (part / "part.json").unlink(), "part2: no finished part"),
    "damaged": (edit("part.json", images=[]), "part.json: damaged"),
    "of more images than there are": (edit("part.json", images={"train": 10**400, "validation": 1}), "part.json: damaged"),
    "of shards without images": (edit("identity.json", shard_images=0), r"identity.json: shard_images: 0 is damaged"),
    "of neither images nor shards": (
        lambda part: (edit("identity.json", shard_images=0)(part), edit("part.json", images=dict.fromkeys(IMAGES, 0))(part)),
        r"identity.json: shard_images: 0 is damaged",
    ),
    "another tokenizer": (
        edit("identity.json", tokenizer_sha256="def", mirrored=False),
        r"part2: has another tokenizer_sha256, mirrored \(abc, not def\) than .*part1; leave it out",
    ),
    "another preprocessing": (edit("identity.json", preprocessing="bf16"), r"another preprocessing \(none, not bf16\)"),
    "other images": (edit("identity.json", data_fingerprint="g"), r"another data_fingerprint \(f, not g\)"),
    "other options of the data": (edit("identity.json", data={"name": "hub"}), "another data "),
    "another number of images": (edit("part.json", images=IMAGES | {"train": 23}), "part2: has another number of images"),
    "a shard of another part": (
        lambda part: shutil.copytree(part.with_name("part1") / "train/00003", part / "train/00003"),
        "part2: holds train/00003, as .*part1 does",
    ),
    "a shard less": (lambda part: shutil.rmtree(part / "train/00001"), r"1 of 8 shards are in no part \(train/00001\)"),
    "a shard beyond the data": (
        lambda part: shutil.copytree(part / "train/00004", part / "train/00006"),
        "part2: holds train/00006, after the end of the data",
    ),
    "shards at other places": (misplaced, "train/00001: holds other images than 4 to 8"),
    "an unreadable image that nobody names": (
        edit("part.json", unreadable=["a", "b"]),
        "part2: lacks 0 images and names 2 as unreadable; delete it and make it again",
    ),
    "a shard cut short": (
        lambda part: (part / "train/00001/data-00000-of-00001.arrow").write_bytes(b"short"),
        r"train/00001: damaged shard \(data-00000-of-00001.arrow: 5 of \d+ bytes\)",
    ),
    "a flipped bit": (flip, "train/00001: damaged shard .*is not what was written"),
    "checksums of nothing": (
        lambda part: (part / "train/00001/checksums.json").write_text("{}"),
        r"train/00001: damaged shard \(data-00000-of-00001.arrow is not in checksums.json\)",
    ),
    "a flipped bit of the code vectors": (
        lambda part: flip(part, "codebook.safetensors"),
        "part2/codebook.safetensors: missing or not what was written; delete .*part2/part.json and run",
    ),
    "no code vectors": (lambda part: (part / "codebook.safetensors").unlink(), "part2/codebook.safetensors: missing"),
    "code vectors of another machine": (other_codebook, "part2/codebook.safetensors: other code vectors than those of .*part1"),
    "code vectors of which nothing is known": (forget_codebook, "part.json: damaged; delete it and run the part's command"),
    "no checksums": (lambda part: (part / "train/00001/checksums.json").unlink(), "train/00001: has no checksums"),
}


@pytest.mark.parametrize("spoil, says", SPOILT.values(), ids=SPOILT)
def test_what_does_not_fit_is_refused(parts, tmp_path, spoil, says):
    spoil(parts[1])
    with pytest.raises(UserError, match=says):
        merge_parts(parts, tmp_path / "joined")
    assert not (tmp_path / "joined/store.json").exists()


def test_the_code_vectors_of_every_part_are_looked_at(parts, tmp_path):
    flip(parts[0], "codebook.safetensors")
    with pytest.raises(UserError, match=r"part1/codebook\.safetensors: missing or not what was written"):
        merge_parts(parts, tmp_path / "joined")
    for part in parts:
        (part / "codebook.safetensors").unlink()
        marked = json.loads((part / "part.json").read_text())
        mark_part(part, marked["images"], marked["unreadable"])
    assert merge_parts(parts, tmp_path / "joined").code_vectors() is None


def test_parts_that_nobody_may_write_to_are_joined_to_a_store_that_one_may(parts, tmp_path):
    for file in parts[0].rglob("*"):
        file.chmod(0o555 if file.is_dir() else 0o444)
    merge_parts(parts, tmp_path / "joined")
    assert contents(tmp_path / "joined") == contents(make(tmp_path / "whole"))
    assert all(path.stat().st_mode & 0o200 for path in (tmp_path / "joined").rglob("*"))


def test_a_copy_that_is_not_its_original_is_told(parts, tmp_path, monkeypatch):
    def copy_short(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:-1])

    monkeypatch.setattr(shutil, "copyfile", copy_short)
    with pytest.raises(UserError, match=r"joined/train/00000: not what .*part1/train/00000 holds, just after it was copied"):
        merge_parts(parts, tmp_path / "joined")
    assert not (tmp_path / "joined/train/00000").exists()


def test_a_part_is_not_joined_into(parts):
    before = contents(parts[1])
    with pytest.raises(UserError, match="part2: is a part of a store; choose another --out"):
        merge_parts(parts, parts[1])
    assert contents(parts[1]) == before


def test_a_part_that_is_left_out_or_named_twice_is_refused(parts):
    with pytest.raises(UserError, match=r"3 of 8 shards are in no part \(train/00001, train/00004, validation/00001\)"):
        check_parts([parts[0], parts[2]])
    with pytest.raises(UserError, match=r"part1: holds train/00000, as .*part1 does"):
        check_parts([*parts, parts[0]])


def test_a_part_is_no_store(parts):
    with pytest.raises(UserError, match=r"part1: a part of a store; join all with .* --merge"):
        TokenStore(parts[0])
