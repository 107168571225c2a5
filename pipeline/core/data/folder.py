"""A folder of images in ImageNet's layout: train/<class>/*.jpg and, if there is one, val/<class>/*.jpg."""

import json
import re
from pathlib import Path

from torchvision.models._meta import _IMAGENET_CATEGORIES

from pipeline.core.data.images import ImageData
from pipeline.core.data.listing import Tree, class_folders, list_tree
from pipeline.core.errors import UserError

VALIDATION_FOLDERS = ("validation", "val")
LABEL_FILES = ("synset_words.txt", "classes.txt", "labels.json")
LAYOUT = "expected <path>/train/<class>/*.jpg"


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
    ids = _classes(root / "train")
    present = [root / name for name in VALIDATION_FOLDERS if (root / name).is_dir()]
    if len(present) > 1:
        raise UserError(f"data.path: {root} has both {' and '.join(p.name for p in present)}; remove one of them")
    validation = present[0] if present else None
    validation_ids = _classes(validation) if validation else ids
    unknown = sorted(set(validation_ids).difference(ids))
    if unknown:
        raise UserError(f"data.path: {validation}/{unknown[0]} has no training images; "
                        f"add {root / 'train' / unknown[0]} or remove it")
    if not (validation or 0 < validation_share < 1):
        raise UserError(f"data.validation_share: {validation_share}; use a share between 0 and 1, e.g. 0.05")
    names = _readable_names(root, ids)
    listing = list_tree(Tree(root / "train", validation, ids, validation_ids, names, validation_share))
    return ImageData(listing.train, listing.validation, names, ids, names, listing.fingerprint)


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UserError(f"data.path: {path}: {error}; {LAYOUT}") from None


def _classes(root: Path) -> tuple[str, ...]:
    if not root.is_dir():
        raise UserError(f"data.path: {root} is missing; {LAYOUT}")
    ids = class_folders(root)
    if not ids:
        raise UserError(f"data.path: {root} has no class folders; {LAYOUT}")
    return ids


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
