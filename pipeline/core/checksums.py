"""Folders that know their own files: sizes are compared whenever one is opened, hashes where somebody asks.

    FOLDER/checksums.json   {"data-00000-of-00001.arrow": {"bytes": 123, "sha256": "…"}, …}
"""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import read_json, sha256

CHECKSUMS = "checksums.json"


def seal(folder: Path) -> None:
    """Write down what the files of a folder are, into that folder, before it appears (`new_folder`)."""
    files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in sorted(folder.iterdir())}
    (folder / CHECKSUMS).write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")


def check_sizes(folder: Path) -> None:
    """UserError for other files, or other sizes, than were written; a folder without checksums passes."""
    if (folder / CHECKSUMS).exists():
        for file, size, _ in _sealed(folder):
            found = file.stat().st_size if file.is_file() else 0
            if found != size:
                raise UserError(f"{folder}: damaged shard ({file.name}: {found} of {size} bytes); delete it and tokenize again")


def check_checksums(folder: Path) -> None:
    """UserError where a file is not what was written, byte for byte, and for a folder without checksums."""
    if not (folder / CHECKSUMS).exists():
        raise UserError(f"{folder}: has no checksums; it is of an earlier version, and cannot be verified")
    check_sizes(folder)
    for file, _, expected in _sealed(folder):
        if sha256(file) != expected:
            raise UserError(f"{folder}: damaged shard ({file.name} is not what was written); delete it and tokenize again")


def _sealed(folder: Path) -> list[tuple[Path, int, str]]:
    listed = read_json(folder / CHECKSUMS)
    try:
        files = [(folder / Path(name).name, entry["bytes"], entry["sha256"]) for name, entry in listed.items()]
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{folder / CHECKSUMS}: damaged; delete {folder} and tokenize again") from None
    # hidden files are those of desktops and of NFS
    there = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
    others = there - {file.name for file, _, _ in files} - {CHECKSUMS}
    if others:
        raise UserError(f"{folder}: damaged shard ({min(others)} is not in {CHECKSUMS}); delete it and tokenize again")
    return files
