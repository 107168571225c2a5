"""What all evaluations of one data set share: the real images, the extractor, the reference and the probes.

Each is made when it is first needed, so that an evaluation which is finished costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from eval.config import EvalConfig
from eval.extractors import Extractor, load_extractor
from eval.features import Reference, reference
from eval.measures import Probe, fit_probes
from eval.neighbours import thumbnails
from pipeline.api import ImageData, load_data, tokenizer_folder
from pipeline.core.data.cache import cache_folder
from pipeline.core.data.images import ImageBatch, OrderedImages, UnreadableImages, collate
from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.core.perceptual import Perceptual, best_perceptual
from pipeline.core.rng import generator

Split = Literal["train", "validation", "unseen"]
RealImages = Literal["reference", "floor", "validation", "unseen"]
SPLITS: dict[RealImages, Split] = {"reference": "train", "floor": "train", "validation": "validation", "unseen": "unseen"}
SEARCHED = 50_000  # training images among which copies are looked for, and held-out ones that show how near is usual


def training_data(tokenizer: Path) -> ImageData:
    """The data that the tokenizer of a run was trained on; UserError where it has changed since."""
    origin = read_json(tokenizer_folder(tokenizer) / "training.json")
    data = load_data(**origin["data"])
    if data.fingerprint != origin["data_fingerprint"]:
        raise UserError(f"{tokenizer}: its images have changed since it was trained; restore them or train it again")
    return data


class Judge:
    """Real images and networks for a data set at one image size.

    Of the training images, in an order that the seed decides, the first `reference_images` are the reference and the last
    `images` give the floor, where they are others. Raises UserError where a split is too small.
    """

    def __init__(self, data: ImageData, image_size: int, config: EvalConfig, device: str) -> None:
        self.data, self.image_size, self.config, self.device = data, image_size, config, device
        self.extractor: Extractor = load_extractor(config.extractor, config.weights, device)
        splits: dict[Split, Any] = {"train": data.train, "validation": data.validation}
        if data.unseen is not None:
            splits["unseen"] = data.unseen
        self.images = {split: OrderedImages(images, image_size) for split, images in splits.items()}
        for split, images in self.images.items():
            if len(images) < 40:
                raise UserError(f"data: {len(images)} {split} images; an evaluation needs at least 40")

    @cached_property
    def perceptual(self) -> Perceptual:
        """The perceptual distance of reconstructions."""
        return best_perceptual().to(self.device)

    @property
    def held_out(self) -> bool:
        """Whether there are enough training images for a floor from the training split beside the reference."""
        return len(self.images["train"]) >= self.config.reference_images + self.config.images

    def rows(self, which: RealImages) -> list[int]:
        """The rows of a set in its split, in random order.

        The order is the seed's and the split's alone: equal for every tokenizer, so the blocks of a jackknife are too.
        """
        order = self._order(SPLITS[which])
        if which == "reference":
            return order[: self.config.reference_images]
        return order[-self.config.images :] if which == "floor" else order[: self.config.images]

    def batches(self, split: Split, rows: Sequence[int]) -> Iterator[tuple[UInt8[Tensor, "b 3 y x"], Int[Tensor, "b"]]]:
        """Images and labels of some rows; unreadable ones are counted, named and left out."""
        for batch in self._collated(split, rows):
            yield batch["image"], batch["label"]

    def real_batches(self, which: RealImages) -> Iterator[tuple[UInt8[Tensor, "b 3 y x"], Int[Tensor, "b"]]]:
        """Images and labels of a set of real images."""
        return self.batches(SPLITS[which], self.rows(which))

    def labels(self, split: Split, rows: Sequence[int]) -> Int[Tensor, "n"]:
        """The labels of some rows."""
        return torch.from_numpy(self.images[split].pixels.labels[list(rows)])

    def real(self, which: RealImages) -> Reference:
        """The features of a set of real images, from the cache where they are there."""
        rows = self.rows(which)
        key = self._key(SPLITS[which], which, len(rows))
        return reference(cache_folder() / "references", key, lambda: self.real_batches(which), self.extractor, len(rows))

    def thumbnails(self, split: Split) -> tuple[Float[Tensor, "n f"], Int[Tensor, "n"]]:
        """Thumbnails of a split's images, 50,000 at most and in random order, and the images' rows."""
        found = [(thumbnails(batch["image"]), batch["index"]) for batch in self._collated(split, self._order(split)[:SEARCHED])]
        return torch.cat([small for small, _ in found]), torch.cat([rows for _, rows in found])

    @cached_property
    def reference(self) -> Reference:
        """The training images that samples are compared with."""
        return self.real("reference")

    @cached_property
    def probes(self) -> dict[str, Probe]:
        """Classifiers learned from the reference."""
        return fit_probes(self.reference, self.data.groups, self.extractor)

    def sample_labels(self, count: int | None = None) -> Int[Tensor, "n"]:
        """The classes of `count` samples (the configured images by default), in random order."""
        n, classes = count or self.config.images, len(self.data.class_names)
        if self.config.labels == "data":
            rows = self.rows("floor")
            return self.labels("train", rows).repeat(-(-n // len(rows)))[:n]
        return (torch.arange(n) % classes)[torch.randperm(n, generator=generator(self.config.seed, "labels"))]

    def sample_seeds(self, count: int, offset: int = 0) -> list[int]:
        """The seeds of the samples; those of another `offset`, at most a million, are others."""
        first = 1_000_000 * (self.config.seed + 1) + offset
        return list(range(first, first + count))

    def shown_labels(self) -> dict[str, list[int]]:
        """Which classes a sample sheet shows: one row per group, evenly chosen where there are too many."""
        groups = {name: [] for name in dict.fromkeys(self.data.groups)}
        for label, group in enumerate(self.data.groups):
            groups[group].append(label)
        count = min(self.config.shown_groups, len(groups))
        chosen = [list(groups)[number * len(groups) // count] for number in range(count)]
        columns = self.config.shown_per_group
        # spread over the group's classes; a group of one class repeats it, with other seeds
        return {name: [groups[name][i * len(groups[name]) // columns] for i in range(columns)] for name in chosen}

    def _order(self, split: Split) -> list[int]:
        return torch.randperm(len(self.images[split]), generator=generator(self.config.seed, "evaluation", split)).tolist()

    def _key(self, split: Split, images: str, rows: int) -> dict[str, Any]:
        return {
            "data_fingerprint": self.data.fingerprint,
            "split": split,
            "images": images,
            "rows": rows,
            "seed": self.config.seed,
            "image_size": self.image_size,
        }

    def _collated(self, split: Split, rows: Sequence[int]) -> Iterator[ImageBatch]:
        tally = UnreadableImages()
        for start in range(0, len(rows), self.config.batch_size):
            batch = collate([self.images[split][row] for row in rows[start : start + self.config.batch_size]])
            tally.update(batch)
            if len(batch["label"]):
                yield batch
