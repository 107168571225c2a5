"""Tokens on disk: what stage 1 leaves for stage 2. Arrow shards of `datasets`, memory-mapped, and one JSON file that names all.

    TOKENS/identity.json             what the tokens are: written first; a store that is continued must match it
    TOKENS/train/00000/ …            one `datasets` folder per shard: tokens, mirrored (tokens of the mirrored image), label
    TOKENS/train/00000/checksums.json   the size and the sha256 of the shard's files
    TOKENS/validation/00000/ …
    TOKENS/codebook.safetensors      code vectors, a table "k c" per index, named "0", "1", …: where the tokenizer has such
    TOKENS/store.json                counts and unreadable files: written last, its presence means that the store is whole

Shards begin at multiples of `shard_images` of the data, so that any machine can make any of them (`token_parts`).
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets.table import InMemoryTable
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.core.checksums import check_checksums, check_sizes, seal
from pipeline.core.data.positions import PositionSampler, epoch_order
from pipeline.core.errors import UserError
from pipeline.core.files import naming, new_folder, read_json, sha256, write_json
from pipeline.core.token_spec import TokenSpec

SPLITS = ("train", "validation")
CODEBOOK, WHOLE, PART = "codebook.safetensors", "store.json", "part.json"
datasets.disable_progress_bars()  # ours show what matters


@dataclass(frozen=True)
class TokenIdentity:
    """What the tokens in a store are: two stores with equal identities hold equal tokens.

    spec: a TokenSpec as a dictionary; data: the name and options of the source, `data_fingerprint` of its images.
    tokenizer: the folder it was loaded from; tokenizer_sha256: of its weights.
    """

    spec: dict[str, Any]
    tokenizer: str
    tokenizer_sha256: str
    data: dict[str, Any]
    data_fingerprint: str
    preprocessing: str
    mirrored: bool
    shard_images: int
    class_names: list[str]
    class_ids: list[str]
    groups: list[str]

    @property
    def precision(self) -> str:
        """Of the encoder; the last word of the preprocessing."""
        return self.preprocessing.rpartition(" ")[2]


@dataclass(frozen=True)
class Shard:
    """The images `start` … `stop` of a split of the data, those that can be read."""

    split: str
    number: int
    start: int
    stop: int

    @property
    def place(self) -> str:
        """Its folder in a store."""
        return f"{self.split}/{self.number:05d}"


def shards_of(images: Mapping[str, int], shard_images: int) -> list[Shard]:
    """All shards of data with that many images in each split, in their order."""
    return [
        Shard(split, number, start, min(start + shard_images, images[split]))
        for split in SPLITS
        for number, start in enumerate(range(0, images[split], shard_images))
    ]


class TokenStore:
    """A finished store, read-only. `identity` says what the tokens are, `spec` how they are laid out.

    Raises UserError where the folder holds no store, an unfinished one, or a damaged one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "identity.json").exists():
            raise UserError(f"{self.path}: no token store here; make one with pipeline/tokenize_dataset.py --out {self.path}")
        if not (self.path / WHOLE).exists() and (self.path / PART).exists():
            raise UserError(f"{self.path}: a part of a store; join all with pipeline/tokenize_dataset.py --merge PART …")
        if not (self.path / WHOLE).exists():
            raise UserError(f"{self.path}: unfinished token store; run the same pipeline/tokenize_dataset.py command again")
        self.identity = read_identity(self.path / "identity.json")
        self.spec = TokenSpec.from_dict(self.identity.spec)
        summary = read_json(self.path / WHOLE)
        try:
            self.unreadable: list[str] = list(summary["unreadable"])
            counts = {split: int(summary["images"][split]) for split in SPLITS}
            self.codebook_sha256 = summary.get("codebook_sha256")
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{self.path / WHOLE}: damaged; delete it and tokenize again") from None
        width = self.spec.t * self.spec.d
        self.splits = {split: _load_split(self.path / split, count, width) for split, count in counts.items()}

    @property
    def num_classes(self) -> int:
        """Classes of the data."""
        return len(self.identity.class_names)

    def images(self, split: str) -> int:
        """Images in a split."""
        return len(self.splits[split])

    def code_vectors(self) -> list[Float[Tensor, "_k _c"]] | None:
        """The tokenizer's code vectors, one table per index; None where the store holds none. UserError if damaged."""
        return read_code_vectors(self.path, self.spec)

    def verify(self) -> int:
        """Read every shard and compare it with its checksums; gives their number.

        Opening a store compares sizes only. UserError: the first file that is not as it was written, or without a checksum.
        """
        folders = [folder for split in SPLITS for folder in shard_folders(self.path / split).values()]
        for folder in folders:
            check_checksums(folder)
        file = self.path / CODEBOOK
        if self.codebook_sha256 is not None and not (file.exists() and sha256(file) == self.codebook_sha256):
            raise UserError(f"{file}: missing or not what was written; delete {self.path / WHOLE} and tokenize again")
        return len(folders)

    def batch(
        self, split: str, rows: Sequence[int], mirrored: Bool[np.ndarray, " b"] | None = None
    ) -> tuple[Int[Tensor, "b t d"], Int[Tensor, " b"]]:
        """Tokens and labels of some rows, of the mirrored images where asked."""
        columns = self.splits[split][list(rows)]
        tokens = columns["tokens"]
        if mirrored is not None and mirrored.any():
            tokens = np.where(mirrored[:, None], columns["mirrored"], tokens)
        shaped = torch.from_numpy(tokens.astype(np.int64)).view(len(rows), self.spec.t, self.spec.d)
        labels = torch.from_numpy(np.array(columns["label"], dtype=np.int64))
        problem = None
        if (shaped < 0).any() or (shaped >= torch.tensor(self.spec.sizes)).any():
            problem = f"a token outside {list(self.spec.sizes)}"
        elif (labels < 0).any() or (labels >= self.num_classes).any():
            problem = f"a label of none of the {self.num_classes} classes"
        if problem:
            raise UserError(f"{self.path / split}: {problem}; delete the store and make it again")
        return shaped, labels

    def training_batches(
        self, start: int, stop: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Int[Tensor, "b t d"], Int[Tensor, " b"]]]:
        """This process's rows of the global batches at positions `start` … `stop`: the clock of `ImageDataset`."""
        n = self.images("train")
        order = epoch_order(seed, start // n, n)
        for positions in PositionSampler(start, stop, batch_size, rank, world_size):
            rows, flips = [], []
            for position in positions:
                epoch, offset = divmod(position, n)
                order = order if order.epoch == epoch else epoch_order(seed, epoch, n)
                rows.append(int(order.indices[offset]))
                flips.append(bool(order.flips[offset]))
            yield self.batch("train", rows, np.array(flips) if self.identity.mirrored else None)


class TokenStoreWriter:
    """Writes a store shard by shard; a shard is whole or absent, and shards that exist are not written again.

    Raises UserError where the folder holds tokens of another identity.
    """

    def __init__(self, path: str | Path, identity: TokenIdentity) -> None:
        self.path, self.identity = Path(path), identity
        self.features = datasets.Features(
            {
                name: datasets.Sequence(_integer(identity.spec["sizes"]), length=_length(identity.spec))
                for name in ("tokens", "mirrored")
            }
            | {"label": datasets.Value("int64"), "index": datasets.Value("int64")}
        )

    def open(self) -> None:
        """Write the identity, or compare it with the one that is there."""
        if (self.path / "identity.json").exists():
            difference = differing(read_identity(self.path / "identity.json"), self.identity)
            if difference:
                raise UserError(f"{self.path}: holds tokens of another {difference}; choose another --out or delete it")
        else:
            write_json(self.path / "identity.json", asdict(self.identity))

    def finished(self) -> bool:
        """Whether the store is whole."""
        return (self.path / WHOLE).exists()

    def reopen(self) -> None:
        """Take away what marks a store or a part as whole, before a shard of it is made (again)."""
        for name in (WHOLE, PART):
            (self.path / name).unlink(missing_ok=True)

    def has(self, split: str, shard: int) -> bool:
        """Whether a shard is written."""
        return self.folder(split, shard).exists()

    def write(
        self,
        split: str,
        shard: int,
        tokens: Int[Tensor, "n t d"],
        mirrored: Int[Tensor, "n t d"],
        labels: Int[Tensor, " n"],
        index: Int[Tensor, " n"],
    ) -> None:
        """Write one shard; `index` are the images' rows in the data, in order, so that gaps show unreadable ones."""
        schema = self.features.arrow_schema
        columns = [tokens.flatten(1), mirrored.flatten(1), labels, index]
        arrays = [_arrow(values, kind) for values, kind in zip(columns, schema.types, strict=True)]
        with new_folder(self.folder(split, shard)) as aside:
            if not len(labels):
                return  # no image of the shard can be read: an empty folder, since `datasets` reads no empty tables
            table = InMemoryTable(pa.Table.from_arrays(arrays, schema=schema))
            datasets.Dataset(table, datasets.DatasetInfo(features=self.features)).save_to_disk(str(aside))
            seal(aside)

    def missing(self, split: str, images: int) -> list[int]:
        """The rows, of a split of that many images, of which a shard is there that does not hold them: the unreadable ones."""
        missing = np.zeros(images, dtype=bool)
        for number, folder in shard_folders(self.path / split, empty=True).items():
            start = number * self.identity.shard_images
            missing[start : start + self.identity.shard_images] = True
            missing[shard_rows(folder)] = False
        return np.flatnonzero(missing).tolist()

    def write_code_vectors(self, code_vectors: Sequence[Float[Tensor, "_k _c"]]) -> None:
        """Write a table of code vectors per index; a killed command writes it again, since no store is whole before."""
        tables = {str(j): table.float().cpu().contiguous() for j, table in enumerate(code_vectors)}
        with naming(self.path / CODEBOOK):
            save_file(tables, self.path / CODEBOOK)

    def finish(self, unreadable: Sequence[str], code_vectors: Sequence[Float[Tensor, "_k _c"]] | None = None) -> TokenStore:
        """Write the code vectors, if there are any, count, and mark the store as whole."""
        if code_vectors is not None:
            self.write_code_vectors(code_vectors)
        images = {split: sum(len(shard) for shard in _shards(self.path / split)) for split in SPLITS}
        codebook = {} if code_vectors is None else {"codebook_sha256": sha256(self.path / CODEBOOK)}
        write_json(self.path / WHOLE, {"images": images, "unreadable": sorted(unreadable), **codebook})
        return TokenStore(self.path)

    def folder(self, split: str, shard: int) -> Path:
        """Where a shard is, or will be."""
        return self.path / split / f"{shard:05d}"


def read_identity(file: Path) -> TokenIdentity:
    """What the tokens are that a JSON file describes: a store's `identity.json`, a prior's `tokens.json`."""
    try:
        identity = TokenIdentity(**read_json(file))
    except TypeError:
        raise UserError(f"{file}: not of this version; delete {file.parent} and run its command again") from None
    for name, kind in typing.get_type_hints(TokenIdentity).items():
        value = getattr(identity, name)
        if type(value) is not (typing.get_origin(kind) or kind) or (name == "shard_images" and value < 1):
            raise UserError(f"{file}: {name}: {value!r:.60} is damaged; delete {file.parent} and run its command again")
    try:
        TokenSpec.from_dict(identity.spec)
    except ValueError as error:
        raise UserError(f"{file}: {error}; delete {file.parent} and run its command again") from None
    return identity


def differing(theirs: TokenIdentity, ours: TokenIdentity) -> str:
    """In what two identities differ, and how: nothing where their tokens are the same.

    Hashes say which tokenizer and which images it was; their paths may be others, as they are on another machine.
    """
    known, given = ({**asdict(identity), "data": identity.data | {"path": None}} for identity in (theirs, ours))
    changed = [key for key in given if given[key] != known[key] and key != "tokenizer"]
    return f"{', '.join(changed)} ({_short(known[changed[0]])}, not {_short(given[changed[0]])})" if changed else ""


def read_code_vectors(path: Path, spec: TokenSpec) -> list[Float[Tensor, "_k _c"]] | None:
    """The code vectors in a store's folder, one table per index; None where it holds none. UserError if damaged."""
    file = path / CODEBOOK
    if not file.exists():
        return None
    try:
        tables = load_file(file)
        vectors = [tables[str(j)] for j in range(spec.d)]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{file}: damaged ({type(error).__name__}); delete the store and make it again") from None
    fit = all(table.ndim == 2 and table.is_floating_point() and table.isfinite().all() for table in vectors)
    if not fit or tuple(map(len, vectors)) != spec.sizes:
        raise UserError(f"{file}: not the codes of {spec.sizes}; delete the store and make it again")
    return vectors


def shard_folders(path: Path, empty: bool = False) -> dict[int, Path]:
    """The shards of a split by number, in order; the `empty` ones, of which no image could be read, only where asked."""
    folders = sorted(folder for folder in path.glob("*") if folder.name.isdigit())
    return {int(folder.name): folder for folder in folders if empty or any(folder.iterdir())}


def shard_rows(folder: Path) -> Int[np.ndarray, " n"]:
    """The rows of the data that a shard holds. UserError if damaged."""
    if not any(folder.iterdir()):
        return np.empty(0, dtype=np.int64)
    return np.asarray(_shard(folder).with_format("numpy")["index"][:])


def _load_split(path: Path, images: int, width: int) -> datasets.Dataset:
    shards = _shards(path)
    for shard in shards:
        columns = shard.features
        tokens = [getattr(columns.get(name), "length", None) for name in ("tokens", "mirrored")]
        if tokens != [width, width] or "label" not in columns:
            raise UserError(f"{path}: a shard of other tokens than identity.json tells of; delete the store and make it again")
    found = sum(map(len, shards))
    if found != images:
        raise UserError(f"{path}: {found} of {images} images found; delete the store and make it again")
    try:
        return datasets.concatenate_datasets(shards).with_format("numpy")
    except Exception:  # as above
        raise UserError(f"{path}: shards of different kinds; delete the store and make it again") from None


def _shards(path: Path) -> list[datasets.Dataset]:
    shards = [_shard(folder) for folder in shard_folders(path).values()]
    if not shards:
        raise UserError(f"{path}: no shards; delete the store and make it again")
    return shards


def _shard(folder: Path) -> datasets.Dataset:
    check_sizes(folder)
    try:
        return datasets.Dataset.load_from_disk(str(folder))
    except Exception as error:  # pyarrow and datasets have a dozen kinds for damaged files
        raise UserError(f"{folder}: damaged shard ({type(error).__name__}); delete it and tokenize again") from None


def _arrow(values: Int[Tensor, "n ..."], kind: pa.DataType) -> pa.Array:
    """A column: numbers, or rows of a fixed number of them."""
    flat = values.flatten().cpu().numpy()
    if isinstance(kind, pa.FixedSizeListType):
        return pa.FixedSizeListArray.from_arrays(pa.array(flat).cast(kind.value_type), kind.list_size)
    return pa.array(flat)


def _integer(sizes: Sequence[int]) -> datasets.Value:
    return datasets.Value("uint16" if max(sizes) <= 2**16 else "int32")


def _length(spec: dict[str, Any]) -> int:
    described = TokenSpec.from_dict(spec)
    return described.t * described.d


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
