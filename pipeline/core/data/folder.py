"""A folder of images in ImageNet's layout: train/<class>/*.jpg and, if there is one, val/<class>/*.jpg."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from datasets.table import InMemoryTable
from torchvision.models._meta import _IMAGENET_CATEGORIES

from pipeline.core.data.images import FEATURES, ImageData, short_hash
from pipeline.core.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
VALIDATION_FOLDERS = ("validation", "val")
LABEL_FILES = ("synset_words.txt", "classes.txt", "labels.json")
LAYOUT = "expected <path>/train/<class>/*.jpg"

Files = list[tuple[str, int, int]]     # name, size in bytes, time of change in nanoseconds


def folder(path: str, validation_share: float = 0.05) -> ImageData:
    """The images below `path`, one folder per class, classes in the order of their folders' names.

    Without a validation folder, `validation_share` of each class's training images (at least one) is set apart, chosen by
    the hash of the file name. Readable names come from synset_words.txt, classes.txt ("<folder> <name>" a line) or
    labels.json ({folder: name}) in `path`, or, for exactly ImageNet's 1000 synset folders, from torchvision's list.
    Raises UserError for a folder that is missing, empty, without class folders or with an empty class.
    """
    root = _expanded(path)
    if not root.is_dir():
        raise UserError(f"data.path: {root} is no folder; {LAYOUT}")
    train = _list_classes(root / "train")
    present = [root / name for name in VALIDATION_FOLDERS if (root / name).is_dir()]
    if len(present) > 1:
        raise UserError(f"data.path: {root} has both {' and '.join(p.name for p in present)}; remove one of them")
    if present:
        validation_root = present[0]
        validation = _list_classes(validation_root)
        unknown = sorted(validation.keys() - train.keys())
        if unknown:
            raise UserError(f"data.path: {validation_root / unknown[0]} has no training images; "
                            f"add {root / 'train' / unknown[0]} or remove it")
    else:
        validation_root = root / "train"
        train, validation = _set_apart(train, validation_share)
    ids = tuple(train)
    names = _readable_names(root, ids)
    return ImageData(_as_dataset(root / "train", train, ids), _as_dataset(validation_root, validation, ids), names, ids,
                     names, short_hash(json.dumps([train, validation, names])))


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UserError(f"data.path: {path}: {error}; {LAYOUT}") from None


def _list_classes(root: Path) -> dict[str, Files]:
    if not root.is_dir():
        raise UserError(f"data.path: {root} is missing; {LAYOUT}")
    with _listed(root) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UserError(f"data.path: {root} has no class folders; {LAYOUT}")
    return {name: _list_images(root / name) for name in classes}


@contextmanager
def _listed(path: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    """What is in a folder; UserError where it cannot be read."""
    try:
        with os.scandir(path) as entries:
            yield (_named(entry) for entry in entries)
    except OSError as error:
        raise UserError(f"data.path: {path} cannot be read ({error.strerror}); mend that or remove it") from None


def _named(entry: os.DirEntry[str]) -> os.DirEntry[str]:
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        raise UserError(f"data.path: {entry.path} has a name that is not UTF-8; rename it") from None
    return entry


def _list_images(path: Path) -> Files:
    # a link to nothing is an image that cannot be read; a folder or a pipe of an image's name is none
    with _listed(path) as entries:
        found = [(entry.name, entry.stat(follow_symlinks=entry.is_file())) for entry in entries
                 if entry.name.lower().endswith(EXTENSIONS) and entry.name[0] != "."
                 and (entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)))]
    files = sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)
    if not files:
        raise UserError(f"data.path: {path} has no images ({', '.join(EXTENSIONS)}); add some or remove the folder")
    return files


def _set_apart(classes: dict[str, Files], share: float) -> tuple[dict[str, Files], dict[str, Files]]:
    if not 0 < share < 1:
        raise UserError(f"data.validation_share: {share}; use a share between 0 and 1, e.g. 0.05")
    train, validation = {}, {}
    for name, images in classes.items():
        if len(images) == 1:
            raise UserError(f"data.path: class {name} has a single image; without a validation folder it needs two")
        count = min(math.ceil(share * len(images)), len(images) - 1)
        # by hash: adding a file moves few of the others, and no order by date or camera survives
        by_hash = sorted(images, key=lambda image: hashlib.sha256(os.fsencode(image[0])).digest())
        validation[name], train[name] = sorted(by_hash[:count]), sorted(by_hash[count:])
    return train, validation


def _as_dataset(root: Path, classes: dict[str, Files], ids: tuple[str, ...]) -> datasets.Dataset:
    paths = []
    for name, images in classes.items():
        prefix = os.path.join(root, name, "")
        paths += [prefix + file for file, _, _ in images]
    labels = np.repeat(np.arange(len(ids)), [len(classes.get(name, ())) for name in ids])
    image = pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), pa.array(paths)], names=["bytes", "path"])
    table = pa.table({"image": image, "label": labels})
    return datasets.Dataset(InMemoryTable(table), info=datasets.DatasetInfo(features=FEATURES))


def _readable_names(root: Path, ids: tuple[str, ...]) -> tuple[str, ...]:
    files = [root / name for name in LABEL_FILES if (root / name).is_file()]
    if files:
        names = _read_labels(files[0])
        missing = [class_id for class_id in ids if class_id not in names]
        if missing:
            raise UserError(f"data.path: {files[0]} has no name for the folder {missing[0]}; add it")
        return tuple(names[class_id] for class_id in ids)
    if len(ids) == len(_IMAGENET_CATEGORIES) and all(re.fullmatch(r"n\d{8}", class_id) for class_id in ids):
        return tuple(_IMAGENET_CATEGORIES)
    return ids


def _read_labels(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.path: {path} cannot be read ({error}); mend or remove it") from None
    if path.suffix == ".json":
        try:
            names = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"data.path: {path} is no JSON ({error}); mend or remove it") from error
        if not isinstance(names, dict):
            raise UserError(f'data.path: {path} is no mapping; write {{"<folder>": "<name>", ...}}')
        return {class_id: str(name) for class_id, name in names.items()}
    lines = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    return {line[0]: line[-1].strip() for line in lines}
