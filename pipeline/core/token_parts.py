"""Token stores made in parts, by machines that share nothing, and joined.

    PART/identity.json, train/00003/ …, codebook.safetensors   as in a whole store, but some of its shards only
    PART/part.json   images of each split of the data, readable or not; the unreadable ones of its shards; the sha256 of the
                     codebook, equal in all parts: written last
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.core.checksums import check_checksums
from pipeline.core.errors import UserError
from pipeline.core.files import new_folder, read_json, sha256, write_json
from pipeline.core.token_spec import TokenSpec
from pipeline.core.token_store import (
    CODEBOOK,
    PART,
    SPLITS,
    Shard,
    TokenIdentity,
    TokenStore,
    TokenStoreWriter,
    differing,
    read_code_vectors,
    read_identity,
    shard_folders,
    shard_rows,
    shards_of,
)

MOST_SHARDS = 1_000_000  # of a split: what names more is damaged


@dataclass(frozen=True)
class TokenPart:
    """A finished part: `images` of each split of the whole data; `shards` by their place in a store, such as train/00003.

    codebook_sha256: of the file of code vectors; None where the tokenizer has none.
    """

    path: Path
    identity: TokenIdentity
    images: dict[str, int]
    unreadable: list[str]
    codebook_sha256: str | None
    shards: dict[str, Path]


def mark_part(folder: Path, images: Mapping[str, int], unreadable: Sequence[str]) -> None:
    """Mark a folder as a part whose shards, and code vectors if the tokenizer has such, are all there."""
    values = {"images": dict(images), "unreadable": sorted(unreadable), "codebook_sha256": _codebook_sha256(folder)}
    write_json(folder / PART, values)


def read_part(path: Path) -> TokenPart:
    """Raises UserError where the folder holds no part, an unfinished or a damaged one."""
    if not (path / PART).exists():
        raise UserError(f"{path}: no finished part of a token store; make it with pipeline/tokenize_dataset.py --part K/N")
    identity, marked = read_identity(path / "identity.json"), read_json(path / PART)
    try:
        images = {split: int(marked["images"][split]) for split in SPLITS}
        unreadable, codebook = [str(name) for name in marked["unreadable"]], marked["codebook_sha256"]
        if not all(0 <= count <= MOST_SHARDS * identity.shard_images for count in images.values()):
            raise ValueError(images)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{path / PART}: damaged; delete it and run the part's command again") from None
    folders = [folder for split in SPLITS for folder in shard_folders(path / split, empty=True).values()]
    shards = {f"{folder.parent.name}/{folder.name}": folder for folder in folders}
    return TokenPart(path, identity, images, unreadable, codebook, shards)


def check_parts(paths: Sequence[Path]) -> list[TokenPart]:
    """The parts, if they make up one store; reads no tokens.

    UserError: parts of other tokens, images or code vectors than the first, with a shard in common, or that lack shards or
    images; code vectors that are not what was written.
    """
    parts = [read_part(path) for path in paths]
    first, holders = parts[0], dict[str, Path]()
    for part in parts:
        difference = differing(first.identity, part.identity)
        if difference or part.images != first.images:
            raise UserError(f"{part.path}: has another {difference or 'number of images'} than {first.path}; leave it out")
        _check_codebook(part, first)
        for place in part.shards:
            if place in holders:
                raise UserError(f"{part.path}: holds {place}, as {holders[place]} does; leave one of them out")
            holders[place] = part.path
    shards = {shard.place: shard for shard in shards_of(first.images, first.identity.shard_images)}
    lacking, foreign = [place for place in shards if place not in holders], sorted(holders.keys() - shards.keys())
    if lacking:
        raise UserError(f"{len(lacking)} of {len(shards)} shards are in no part ({_some(lacking)}); name or make theirs")
    if foreign:
        raise UserError(f"{holders[foreign[0]]}: holds {foreign[0]}, after the end of the data; delete it and make it again")
    for part in parts:
        gaps = sum(_gaps(folder, shards[place]) for place, folder in part.shards.items())
        if gaps != len(part.unreadable):
            known = len(part.unreadable)
            raise UserError(f"{part.path}: lacks {gaps} images and names {known} as unreadable; delete it and make it again")
    return parts


def merge_parts(paths: Sequence[Path], out: Path) -> TokenStore:
    """Join parts into one store, file by file that of a single machine; a killed merge goes on.

    Every shard is compared with its checksums on the way. Raises UserError as `check_parts` does, for a damaged shard, and for
    an `out` that is a part.
    """
    if (out / PART).exists():
        raise UserError(f"{out}: is a part of a store; choose another --out")
    parts = check_parts(paths)
    first = parts[0]
    writer = TokenStoreWriter(out, first.identity)
    writer.open()
    shards = shards_of(first.images, first.identity.shard_images)
    folders = {place: folder for part in parts for place, folder in part.shards.items()}
    missing = [shard for shard in shards if not writer.has(shard.split, shard.number)]
    if writer.finished() and not missing:
        return TokenStore(out)
    writer.reopen()
    for shard in missing:
        _copy(folders[shard.place], writer.folder(shard.split, shard.number))
    unreadable = [name for part in parts for name in part.unreadable]
    return writer.finish(unreadable, read_code_vectors(first.path, TokenSpec.from_dict(first.identity.spec)))


def _gaps(folder: Path, shard: Shard) -> int:
    """How many images of the data a shard lacks; UserError where it is not this one."""
    rows = shard_rows(folder)
    if len(rows) and (rows[0] < shard.start or rows[-1] >= shard.stop or (np.diff(rows) <= 0).any()):
        raise UserError(f"{folder}: holds other images than {shard.start} to {shard.stop}; delete it and make the part again")
    return shard.stop - shard.start - len(rows)


def _check_codebook(part: TokenPart, first: TokenPart) -> None:
    file, remedy = part.path / CODEBOOK, f"delete {part.path / PART} and run the part's command again"
    if _codebook_sha256(part.path) != part.codebook_sha256:
        raise UserError(f"{file}: missing or not what was written; {remedy}")
    if part.codebook_sha256 != first.codebook_sha256:
        raise UserError(f"{file}: other code vectors than those of {first.path}; {remedy}, on a machine of the same kind")


def _codebook_sha256(folder: Path) -> str | None:
    file = folder / CODEBOOK
    return sha256(file) if file.exists() else None


def _copy(source: Path, target: Path) -> None:
    with new_folder(target) as aside:
        for file in source.iterdir():
            shutil.copyfile(file, aside / file.name)  # not its mode: it may be one that forbids to write
        if not any(aside.iterdir()):
            return  # none of its images can be read
        try:
            check_checksums(aside)
        except UserError:
            check_checksums(source)
            raise UserError(f"{target}: not what {source} holds, just after it was copied; check this disk") from None


def _some(places: Sequence[str]) -> str:
    return ", ".join(places[:3]) + (", …" if len(places) > 3 else "")
