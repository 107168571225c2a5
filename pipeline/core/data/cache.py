"""Data sets that are built once and kept on disk."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets
from datasets.arrow_writer import ArrowWriter

from pipeline.core.data.images import FEATURES


def cache_folder() -> Path:
    """Where built data sets live: the environment variable LGQ_CACHE, or ~/.cache/lgq."""
    return Path(os.environ.get("LGQ_CACHE") or Path.home() / ".cache" / "lgq")


def build_once(key: str, build: Callable[[Path], object]) -> Path:
    """The folder `key` of the cache, filled by `build(folder)` the first time.

    It is filled aside and renamed, so it is either whole or absent; of two processes that build at once, one wins.
    """
    folder = cache_folder() / key
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=folder.parent))
    try:
        build(aside)
        aside.rename(folder)
    except OSError:
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def write_split(path: Path, images: list[dict], labels: list[int]) -> None:
    """Write images ({"bytes", "path"} each) and labels as one Arrow file that `datasets.Dataset.from_file` maps."""
    with ArrowWriter(path=str(path), features=FEATURES) as writer:
        writer.write_table(datasets.Dataset.from_dict({"image": images, "label": labels}, FEATURES).data.table)
        writer.finalize()
