"""Images for training and evaluation: what a data set is, and how positions become batches of pixels."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import datasets
import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.core.data.decode import UnreadableImage, decode_image
from pipeline.core.data.positions import PositionSampler, epoch_order
from pipeline.core.errors import UserError

logger = logging.getLogger(__name__)

FEATURES = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
MEMORY_LIMIT = 512 * 2**20  # bytes of decoded pixels that a split may keep in memory


@dataclass(frozen=True)
class ImageData:
    """A labelled data set with two splits; their columns: image ({"bytes", "path"}, not decoded), label (int).

    `class_names` are for people ("golden retriever"), `class_ids` are folder or synset names ("n02099601"), `groups` name
    something coarser ("sahara" for "sahara 24N 8E"); the position in each is the label. Where a source has no ids or
    groups, they equal the names. `fingerprint` changes when images, labels or options change. `unseen`: images that neither
    training nor the choice of any setting may use, for a judge alone; they belong to no class (label -1). None: there are none.
    """

    train: datasets.Dataset
    validation: datasets.Dataset
    class_names: tuple[str, ...]
    class_ids: tuple[str, ...]
    groups: tuple[str, ...]
    fingerprint: str
    unseen: datasets.Dataset | None = None

    def __post_init__(self):
        if not len(self.class_names) == len(self.class_ids) == len(self.groups):
            raise ValueError(f"ImageData: {len(self.class_names)} class names, {len(self.class_ids)} ids and "
                             f"{len(self.groups)} groups; there must be one of each per class")


class ImageItem(TypedDict):
    """One image; `unreadable` names the files that could not be decoded on the way to it."""

    image: UInt8[Tensor, "3 y x"]
    label: int
    index: int
    unreadable: tuple[str, ...]


class ImageBatch(TypedDict):
    """A batch; `index` is the row in the split, `unreadable` names all files of the batch that could not be decoded."""

    image: UInt8[Tensor, "b 3 y x"]
    label: Int[Tensor, " b"]
    index: Int[Tensor, " b"]
    unreadable: tuple[str, ...]


class _Pixels:
    """The decoded images of a split by row; a split that is small enough stays in memory once decoded, if `keep`."""

    def __init__(self, split: datasets.Dataset, image_size: int, keep: bool = True):
        self.split, self.image_size = split, image_size
        # as Arrow: `datasets` would make a Python object of every label on the way to numpy
        self.labels = split.select_columns("label").with_format("arrow")[:]["label"].to_numpy().astype(np.int64, copy=False)
        n = len(self.labels)
        self.kept = None
        if keep and n * image_size**2 * 3 <= MEMORY_LIMIT:
            self.kept = torch.empty(n, 3, image_size, image_size, dtype=torch.uint8)
            self.is_kept = np.zeros(n, dtype=bool)

    def name(self, index: int) -> str:
        return self.split[index]["image"]["path"] or f"image {index}"

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 y x"]:
        if self.kept is not None and self.is_kept[index]:
            return self.kept[index]
        pixels = decode_image(self.split[index]["image"], self.image_size)
        image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        if self.kept is not None:
            self.kept[index] = image
            self.is_kept[index] = True
        return image


class ImageDataset(Dataset):
    """Shuffled training images by position: 0, 1, 2, ... without end.

    The image at position p is `permutation(seed, p // n)[p % n]`, and whether it is mirrored is a function of (seed, p) too.
    An unreadable image is named in the item, and the next readable position's image takes its place.
    Raises UserError for an empty split, and when no image of the split can be read.
    """

    def __init__(self, split: datasets.Dataset, image_size: int, flip: bool, seed: int):
        if len(split) == 0:
            raise UserError("training images: none; the split is empty")
        self.pixels = _Pixels(split, image_size)
        self.images_per_epoch = len(split)
        self.flip, self.seed = flip, seed
        self.order = epoch_order(seed, 0, self.images_per_epoch)

    def _row(self, position: int) -> tuple[int, bool]:
        epoch, offset = divmod(position, self.images_per_epoch)
        if self.order.epoch != epoch:
            self.order = epoch_order(self.seed, epoch, self.images_per_epoch)
        return int(self.order.indices[offset]), self.flip and bool(self.order.flips[offset])

    def __getitem__(self, position: int) -> ImageItem:
        unreadable = []
        for candidate in range(position, position + self.images_per_epoch):
            index, flip = self._row(candidate)
            try:
                image = self.pixels[index]
            except UnreadableImage:
                unreadable.append(self.pixels.name(index))
                continue
            return {"image": image.flip(-1) if flip else image, "label": int(self.pixels.labels[index]), "index": index,
                    "unreadable": tuple(unreadable)}
        raise UserError(f"training images: none of {self.images_per_epoch} can be read, e.g. {unreadable[0]}; "
                        "check the files")


class OrderedImages(Dataset):
    """The images of a split in their order, as they are: for encoding and evaluation.

    An unreadable image comes as an empty tensor [3, 0, image_size] with its name in `unreadable`; `collate` leaves it out.
    `keep` small splits in memory where they are read more than once.
    """

    def __init__(self, split: datasets.Dataset, image_size: int, keep: bool = True):
        self.pixels = _Pixels(split, image_size, keep)
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.pixels.labels)

    def __getitem__(self, index: int) -> ImageItem:
        label = int(self.pixels.labels[index])
        try:
            return {"image": self.pixels[index], "label": label, "index": index, "unreadable": ()}
        except UnreadableImage:
            nothing = torch.empty(3, 0, self.image_size, dtype=torch.uint8)
            return {"image": nothing, "label": label, "index": index, "unreadable": (self.pixels.name(index),)}


def collate(items: Sequence[ImageItem]) -> ImageBatch:
    """Stack the items that have an image, and gather the names of all unreadable files."""
    size = items[0]["image"].shape[-1]
    readable = [item for item in items if item["image"].numel()]
    return {
        "image": torch.cat([item["image"][None] for item in readable] or [torch.empty(0, 3, size, size, dtype=torch.uint8)]),
        "label": torch.tensor([item["label"] for item in readable], dtype=torch.int64),
        "index": torch.tensor([item["index"] for item in readable], dtype=torch.int64),
        "unreadable": tuple(name for item in items for name in item["unreadable"]),
    }


def image_batches(dataset: ImageDataset, start: int, stop: int, batch_size: int, rank: int = 0, world_size: int = 1,
                  workers: int = 0) -> Iterator[ImageBatch]:
    """This process's rows of the global batches that begin at positions `start`, `start + batch_size`, ... below `stop`."""
    return _batches(dataset, PositionSampler(start, stop, batch_size, rank, world_size), workers)


def ordered_batches(dataset: OrderedImages, batch_size: int, start: int = 0, stop: int | None = None,
                    workers: int = 0) -> Iterator[ImageBatch]:
    """The images `start` to `stop` (default: all) in order; a batch that holds unreadable files is smaller."""
    rows = range(len(dataset))[start:stop]
    return _batches(dataset, [list(rows[i:i + batch_size]) for i in range(0, len(rows), batch_size)], workers)


def _batches(dataset: Dataset, batches, workers: int) -> Iterator[ImageBatch]:
    # a generator of its own: otherwise each new iterator draws from the global one, and a resumed run would differ
    return iter(DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate,
                           generator=torch.Generator(), pin_memory=torch.cuda.is_available()))


class UnreadableImages:
    """Counts unreadable images and logs each name once.

    Raises UserError as soon as they are more than `max_share` of the images seen, of which at least `at_least` are taken
    as seen: so one broken file among the first ten does not stop a run.
    """

    def __init__(self, max_share: float = 0.01, at_least: int = 1000):
        self.max_share, self.at_least = max_share, at_least
        self.seen, self.count = 0, 0
        self.names: set[str] = set()

    def update(self, batch: ImageBatch) -> None:
        """Count a batch; the names that are new go to the log, one line each."""
        names = batch["unreadable"]
        self.seen += len(batch["label"]) + len(names)
        self.count += len(names)
        for name in names:
            if name not in self.names:
                self.names.add(name)
                logger.warning("unreadable image, left out: %s", name)
        if self.count > self.max_share * max(self.seen, self.at_least):
            raise UserError(f"data: {self.count} of {self.seen} images are unreadable, more than {self.max_share:.2%}, "
                            f"e.g. {min(self.names)}; mend or remove these files, or raise the share allowed")


def short_hash(*parts: object) -> str:
    """Sixteen hexadecimal digits of the sha256 of bytes, or of the text of anything else."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part if isinstance(part, bytes) else str(part).encode(errors="surrogateescape")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()[:16]
