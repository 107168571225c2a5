import logging
from dataclasses import replace
from itertools import pairwise

import datasets
import pytest
import torch

from pipeline.core.data import images as images_module
from pipeline.core.data.images import (
    FEATURES,
    ImageDataset,
    OrderedImages,
    UnreadableImages,
    collate,
    image_batches,
    ordered_batches,
)
from pipeline.core.errors import UserError


@pytest.fixture
def broken_split(shape_data):
    """Ten images of which 3 and 4 are broken; 4 has a path."""
    rows = [shape_data.train[i] for i in range(10)]
    rows[3]["image"] = {"bytes": b"broken", "path": None}
    rows[4]["image"] = {"bytes": b"broken", "path": "train/disc/4.jpg"}
    columns = {name: [row[name] for row in rows] for name in FEATURES}
    return datasets.Dataset.from_dict(columns, FEATURES)


def joined(batches, key="image"):
    return torch.cat([batch[key] for batch in batches])


def test_an_epoch_shows_every_image_once(shape_data):
    dataset = ImageDataset(shape_data.train, 16, flip=True, seed=0)
    n = dataset.images_per_epoch
    for epoch in range(2):
        assert sorted(dataset[p]["index"] for p in range(epoch * n, epoch * n + n)) == list(range(n))


def test_position_decides_everything(shape_data):
    one, other = (ImageDataset(shape_data.train, 16, flip=True, seed=3) for _ in range(2))
    positions = [0, 7, 49, 50, 120, 7, 0]
    far_first = {p: other[p] for p in reversed(positions)}
    for p in positions:
        assert torch.equal(one[p]["image"], far_first[p]["image"]) and one[p]["label"] == far_first[p]["label"]


def test_flip_mirrors_about_half_and_only_if_asked(shape_data):
    plain, flipped = (ImageDataset(shape_data.train, 16, flip=flip, seed=0) for flip in (False, True))
    ordered = OrderedImages(shape_data.train, 16)
    mirrored = 0
    for p in range(100):
        item, upright = flipped[p], ordered[plain[p]["index"]]["image"]
        assert torch.equal(plain[p]["image"], upright)
        assert torch.equal(item["image"], upright) or torch.equal(item["image"], upright.flip(-1))
        mirrored += not torch.equal(item["image"], upright)
    assert 25 < mirrored < 75


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_restarts_see_what_one_process_sees(shape_data, workers):
    dataset = ImageDataset(shape_data.train, 16, flip=True, seed=0)
    whole = list(image_batches(dataset, 0, 80, 8))
    ranks = [list(image_batches(dataset, 40, 80, 8, rank, 2, workers)) for rank in range(2)]
    for expected, *parts in zip(whole[5:], *ranks, strict=True):
        assert torch.equal(expected["image"], joined(parts))
        assert torch.equal(expected["label"], joined(parts, "label"))


def test_iterating_leaves_the_global_generator_alone(shape_data):
    dataset = ImageDataset(shape_data.train, 16, flip=True, seed=0)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    next(image_batches(dataset, 0, 8, 8))
    assert torch.equal(torch.rand(3), expected)


def test_pixels_are_the_same_kept_in_memory_or_not(shape_data, monkeypatch):
    kept = ImageDataset(shape_data.train, 16, flip=True, seed=0)
    monkeypatch.setattr(images_module, "MEMORY_LIMIT", 0)
    decoded = ImageDataset(shape_data.train, 16, flip=True, seed=0)
    for p in [*range(60), *range(60)]:
        assert torch.equal(kept[p]["image"], decoded[p]["image"])


def test_unreadable_training_image_is_named_and_the_next_takes_its_place(broken_split):
    dataset = ImageDataset(broken_split, 16, flip=False, seed=0)
    names = {"image 3", "train/disc/4.jpg"}
    items = [dataset[p] for p in range(11)]
    assert {name for item in items[:10] for name in item["unreadable"]} == names
    assert all(item["index"] not in (3, 4) for item in items)
    for here, following in pairwise(items):
        if here["unreadable"]:
            assert here["index"] == following["index"] and torch.equal(here["image"], following["image"])


def test_no_readable_image_is_an_error_not_a_loop(broken_split):
    with pytest.raises(UserError, match="none of 2 can be read"):
        ImageDataset(broken_split.select([3, 4]), 16, flip=False, seed=0)[0]
    with pytest.raises(UserError, match="empty"):
        ImageDataset(broken_split.select([]), 16, flip=False, seed=0)


def test_ordered_images_leave_unreadable_ones_out_and_name_them(broken_split):
    batches = list(ordered_batches(OrderedImages(broken_split, 16), 4))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2], [5, 6, 7], [8, 9]]
    assert batches[0]["unreadable"] == ("image 3",) and batches[1]["unreadable"] == ("train/disc/4.jpg",)
    assert all(batch["image"].dtype == torch.uint8 and batch["label"].dtype == torch.int64 for batch in batches)
    part = joined(ordered_batches(OrderedImages(broken_split, 16), 4, start=1, stop=9))
    assert torch.equal(part, joined(batches)[1:-1])


def test_a_batch_without_a_readable_image_is_empty(broken_split):
    dataset = OrderedImages(broken_split, 16)
    batch = collate([dataset[3], dataset[4]])
    assert batch["image"].shape == (0, 3, 16, 16) and batch["label"].shape == (0,)
    assert batch["unreadable"] == ("image 3", "train/disc/4.jpg")


def test_tally_names_each_once_and_stops_at_the_share(broken_split, caplog):
    batch = next(ordered_batches(OrderedImages(broken_split, 16), 10))
    tally = UnreadableImages(max_share=0.3, at_least=20)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            tally.update(batch)
    assert [r.getMessage().rsplit(": ")[-1] for r in caplog.records] == ["image 3", "train/disc/4.jpg"]
    assert tally.count == 6 and tally.seen == 30
    strict = UnreadableImages(max_share=0.1, at_least=20)
    strict.update(batch)
    with pytest.raises(UserError, match="4 of 20 images are unreadable, more than 10"):
        strict.update(batch)


def test_image_data_needs_a_name_id_and_group_per_class(shape_data):
    with pytest.raises(ValueError, match="one of each per class"):
        replace(shape_data, groups=("round",))
