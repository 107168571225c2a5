"""The images of a folder tree as Arrow files, listed class by class; the listing of a large tree is remembered.

Memory is that of one class, whatever the number of images. For every large tree the cache (`cache_folder`) holds

    listing-TREE-STATE/train.arrow, validation.arrow   the path and the label of every image; mapped into memory, not read
    listing-TREE-STATE/listing.json                    the fingerprint

where TREE stands for its folders and options, and STATE for the rules of listing and for all that tells whether the tree is
still the same: the time of change of each class folder, which files that come, go, or are replaced move on; size and time of
some files of each. Another that is written over in place goes unseen. A listing that no start has used for a week goes when its
tree has a new one.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO

import datasets
import numpy as np
import pyarrow as pa
from datasets.table import InMemoryTable

from pipeline.core.data.cache import build_once, cache_folder
from pipeline.core.data.images import FEATURES, short_hash
from pipeline.core.errors import UserError
from pipeline.core.files import naming, read_json, write_json

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
RULES = 1               # of `_list_images` and `_set_apart`: count on where they change, or old listings stay in use
SPLITS = ("train", "validation")
REMEMBERED = 100_000    # images: of fewer, every file is looked at every time, within a moment
PROBED = 8              # files of each class folder that are looked at before its listing is believed
SETTLED = 3             # seconds: a folder may change again within the tick of its file system's clock
UNUSED = 7 * 86400      # seconds: a run of another machine may read a listing over the network, and would miss it

Files = list[tuple[str, int, int]]     # name, size in bytes, time of change in nanoseconds


@dataclass(frozen=True)
class Tree:
    """Class folders: `ids`, in the order of their labels, below `train`; `validation_ids`, some of these, below `validation`.

    Without a validation folder, `share` of each class's files is set apart. `names` are for people; the fingerprint holds them.
    """

    train: Path
    validation: Path | None
    ids: tuple[str, ...]
    validation_ids: tuple[str, ...]
    names: tuple[str, ...]
    share: float

    def folders(self) -> list[Path]:
        """All class folders."""
        below = [] if self.validation is None else [self.validation / name for name in self.validation_ids]
        return [*(self.train / name for name in self.ids), *below]

    def files(self, name: str) -> tuple[Files, Files]:
        """The files of a class for training and for validation."""
        files = _list_images(self.train / name)
        if self.validation is None:
            return _set_apart(self.train / name, files, self.share)
        return files, _list_images(self.validation / name) if name in self.validation_ids else []


@dataclass(frozen=True)
class Listing:
    """Both splits, with the columns of `FEATURES`; the fingerprint is of the names, sizes and times of all files."""

    train: datasets.Dataset
    validation: datasets.Dataset
    fingerprint: str


def list_tree(tree: Tree) -> Listing:
    """List a tree, or recall how it was listed.

    UserError: a folder that cannot be read, has no image, or none to set apart; a cache that cannot be written or is damaged.
    """
    now = time.time_ns()
    states = [_state(folder) for folder in tree.folders()]
    places = [(str(root), os.path.abspath(root)) for root in (tree.train, tree.validation) if root is not None]
    state = [RULES, EXTENSIONS, tree.ids, tree.validation_ids, tree.names, states]
    listings = f"listing-{short_hash(json.dumps([places, tree.share]))}-"
    remembered = cache_folder() / f"{listings}{short_hash(json.dumps(state))}"
    if remembered.exists():
        with suppress(OSError):  # a cache that somebody else made for us to read
            os.utime(remembered)
    else:
        with TemporaryDirectory() as made, naming(Path(made)):
            images = _write(tree, Path(made))
            settled = now - max(changed for changed, _ in states) > SETTLED * 10**9
            if images < REMEMBERED or not settled:
                return _read(Path(made), stays=False)
            try:
                build_once(remembered.name, lambda aside: shutil.copytree(made, aside, dirs_exist_ok=True))
            except OSError as error:
                raise UserError(f"{remembered.parent}: cannot be written ({error.strerror}); "
                                "let the environment variable LGQ_CACHE name another folder") from None
            _forget_unused(listings)
    return _read(remembered, stays=True)


def class_folders(root: Path) -> tuple[str, ...]:
    """The names of the folders below a split's, sorted."""
    with _listed(root) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))


def _forget_unused(listings: str) -> None:
    """Remove what the cache holds under names that begin so, if no start has used it for long; who has it mapped keeps it."""
    for old in cache_folder().glob(f"{listings}*"):
        with suppress(OSError):  # another process was faster
            if time.time() - old.stat().st_mtime > UNUSED:
                shutil.rmtree(old)


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


def _state(folder: Path) -> tuple[int, Files]:
    """When a folder changed, and some of its files, in the order of the file system."""
    with _listed(folder) as entries:
        return os.stat(folder).st_mtime_ns, [_described(entry) for entry in islice(entries, PROBED)]


def _described(entry: os.DirEntry[str]) -> tuple[str, int, int]:
    stat = entry.stat(follow_symlinks=entry.is_file())  # a link to nothing is an image that cannot be read
    return entry.name, stat.st_size, stat.st_mtime_ns


def _list_images(path: Path) -> Files:
    # a folder or a pipe of an image's name is none
    with _listed(path) as entries:
        files = sorted(_described(entry) for entry in entries
                       if entry.name.lower().endswith(EXTENSIONS) and entry.name[0] != "."
                       and (entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))))
    if not files:
        raise UserError(f"data.path: {path} has no images ({', '.join(EXTENSIONS)}); add some or remove the folder")
    return files


def _set_apart(folder: Path, files: Files, share: float) -> tuple[Files, Files]:
    if len(files) == 1:
        raise UserError(f"data.path: class {folder.name} has a single image; without a validation folder it needs two")
    count = min(ceil(share * len(files)), len(files) - 1)
    # by hash: adding a file moves few of the others, and no order by date or camera survives
    by_hash = sorted(files, key=lambda file: hashlib.sha256(os.fsencode(file[0])).digest())
    return sorted(by_hash[count:]), sorted(by_hash[:count])


def _write(tree: Tree, folder: Path) -> int:
    """Write what `_read` reads; gives the number of images."""
    schema, images = FEATURES.arrow_schema, 0
    roots = tree.train, tree.validation or tree.train
    with ExitStack() as stack:
        sinks = [stack.enter_context(pa.OSFile(str(folder / f"{split}.arrow"), "wb")) for split in SPLITS]
        rows = [stack.enter_context(pa.ipc.new_stream(sink, schema)) for sink in sinks]
        texts = [stack.enter_context(TemporaryFile()) for _ in SPLITS]
        for label, name in enumerate(tree.ids):
            for root, writer, text, files in zip(roots, rows, texts, tree.files(name), strict=True):
                if files:
                    writer.write_batch(_rows(os.path.join(root, name, ""), label, files, schema))
                    text.write(f"{', ' if text.tell() else ''}{json.dumps(name)}: {json.dumps(files)}".encode())
                    images += len(files)
        write_json(folder / "listing.json", {"fingerprint": _fingerprint(texts, tree.names), "folder": str(tree.train.parent)})
    return images


def _rows(prefix: str, label: int, files: Files, schema: pa.Schema) -> pa.RecordBatch:
    paths = pa.array([prefix + name for name, _, _ in files])
    image = pa.StructArray.from_arrays([pa.nulls(len(files), pa.binary()), paths], names=["bytes", "path"])
    return pa.record_batch([image, pa.array(np.full(len(files), label))], schema=schema)


def _fingerprint(texts: Sequence[IO[bytes]], names: tuple[str, ...]) -> str:
    """What `short_hash(json.dumps([train, validation, names]))` gives, for dictionaries that stand in files."""
    end = f"}}, {json.dumps(names)}]".encode()
    digest = hashlib.sha256()
    digest.update((len(b"[{" + b"}, {" + end) + sum(text.tell() for text in texts)).to_bytes(8, "little"))
    for text, before in zip(texts, (b"[{", b"}, {"), strict=True):
        digest.update(before)
        text.seek(0)
        while part := text.read(1 << 20):
            digest.update(part)
    digest.update(end)
    return digest.hexdigest()[:16]


def _read(folder: Path, stays: bool) -> Listing:
    """Map a listing into memory. One that does not stay may be removed right after."""
    try:
        fingerprint = str(read_json(folder / "listing.json")["fingerprint"])
        files = [folder / f"{split}.arrow" for split in SPLITS]
        train, validation = (datasets.Dataset.from_file(str(file)) if stays else _detached(file, fingerprint) for file in files)
        return Listing(train, validation, fingerprint)
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        raise UserError(f"{folder}: damaged ({type(error).__name__}); delete it, and it is made again") from None


def _detached(file: Path, fingerprint: str) -> datasets.Dataset:
    """A mapped table that does without its file's name: it is pickled whole."""
    table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
    # `datasets` would pickle it all for a fingerprint
    return datasets.Dataset(InMemoryTable(table), datasets.DatasetInfo(features=FEATURES),
                            fingerprint=short_hash(fingerprint, file.stem))
