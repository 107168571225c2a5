"""Listings of folder trees: the fingerprint's meaning, and that a remembered one is used just as long as it is true."""

import json
import os
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from datasets import Dataset

from pipeline.core.data import listing
from pipeline.core.data.folder import folder
from pipeline.core.data.images import short_hash
from pipeline.core.errors import UserError

HOUR = 3600 * 10**9


def described(root: Path):
    """Names, sizes and times of the files below a split's folder, by class, as the fingerprint has them."""
    return {
        name.name: sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in name.iterdir())
        for name in sorted(root.iterdir())
    }


def told(root: Path):
    """All that a source tells of a tree."""
    data = folder(str(root))
    return data.train.to_dict(), data.validation.to_dict(), data.class_names, data.fingerprint


@pytest.fixture
def large(image_folder, tmp_path, monkeypatch):
    """A tree that counts as large, last changed an hour ago, and a cache of its own."""
    monkeypatch.setenv("LGQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "REMEMBERED", 5)
    monkeypatch.setattr(listing, "SETTLED", 1800)  # however slow this machine is
    root = image_folder({"train/a": 3, "train/b": 2, "val/a": 1, "val/b": 1})
    settle(root)
    return root


def settle(root: Path) -> None:
    """What changed just now has changed an hour ago; the rest stays."""
    for path in root.glob("*/*"):
        changed = path.stat().st_mtime_ns
        if changed > time.time_ns() - HOUR / 2:
            os.utime(path, ns=(changed - HOUR, changed - HOUR))


def listings(root: Path) -> list[Path]:
    return sorted((root / "cache").glob("listing-*"))


def test_the_fingerprint_is_that_of_names_sizes_and_times(image_folder):
    root = image_folder({"train/a\u00e9": 3, "train/b": 2, "val/b": 1})
    expected = short_hash(json.dumps([described(root / "train"), described(root / "val"), ("a\u00e9", "b")]))
    assert folder(str(root)).fingerprint == expected


def test_a_large_tree_is_listed_once_and_then_mapped(large, monkeypatch):
    first = told(large)
    assert len(listings(large)) == 1

    def fail(path):
        raise AssertionError(f"{path} is listed again")

    monkeypatch.setattr(listing, "_list_images", fail)
    assert told(large) == first
    data = folder(str(large))
    held = [file["filename"] for split in (data.train, data.validation) for file in split.cache_files]
    assert held == [str(listings(large)[0] / f"{split}.arrow") for split in ("train", "validation")]


def test_a_small_tree_leaves_nothing_behind(large, monkeypatch):
    monkeypatch.setattr(listing, "REMEMBERED", 8)
    told(large)
    assert not listings(large)


def test_a_tree_that_is_not_remembered_is_mapped_all_the_same(large, monkeypatch):
    remembered = told(large)
    monkeypatch.setattr(listing, "REMEMBERED", 8)
    monkeypatch.setenv("LGQ_CACHE", str(large / "empty"))
    (large / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(large / "temporary"))
    data = folder(str(large))
    assert not list((large / "temporary").iterdir())
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(large / "temporary") in line]
    assert {line.rpartition("/")[2] for line in mapped} == {"train.arrow (deleted)", "validation.arrow (deleted)"}
    assert (data.train.to_dict(), data.validation.to_dict()) == remembered[:2]
    with ProcessPoolExecutor(1, get_context("spawn")) as worker:  # that finds no file any more
        assert worker.submit(Dataset.to_dict, data.train).result() == remembered[0]


def test_a_tree_that_was_just_changed_is_not_remembered(large):
    (large / "train/b/0.png").rename(large / "train/b/new.png")
    told(large)
    assert not listings(large)
    settle(large)
    told(large)
    assert len(listings(large)) == 1


def replace(root: Path) -> None:
    (root / "train/a/new").write_bytes(b"other")
    (root / "train/a/new").rename(root / "train/a/0.png")


CHANGES = {
    "a new file": lambda root: (root / "train/a/7.png").hardlink_to(root / "train/a/0.png"),
    "a file less": lambda root: (root / "train/a/1.png").unlink(),
    "another name": lambda root: (root / "train/b/1.png").rename(root / "train/b/one.png"),
    "a file in the place of another": replace,
    "a file that is written over": lambda root: (root / "train/b/1.png").write_bytes(b"other"),
    "a new class": lambda root: ((root / "train/c").mkdir(), (root / "train/a/2.png").rename(root / "train/c/2.png")),
    "other names of the classes": lambda root: (root / "classes.txt").write_text("a apple\nb banana\n"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("settled", [True, False])
def test_a_tree_that_changed_is_listed_anew(large, change, settled, monkeypatch):
    before = told(large)
    change(large)
    if settled:
        settle(large)
    after = told(large)
    assert after[-1] != before[-1]
    monkeypatch.setattr(listing, "REMEMBERED", 100)
    monkeypatch.setenv("LGQ_CACHE", str(large / "empty"))
    assert after == told(large)


def test_other_rules_of_listing_make_another(large, monkeypatch):
    def images() -> int:
        data = folder(str(large))
        return len(data.train) + len(data.validation)

    before = images()
    (large / "train/a/0.jxl").hardlink_to(large / "train/a/0.png")
    settle(large)
    assert images() == before
    monkeypatch.setattr(listing, "EXTENSIONS", (*listing.EXTENSIONS, ".jxl"))
    assert images() == before + 1
    known = len(listings(large))
    monkeypatch.setattr(listing, "RULES", listing.RULES + 1)
    assert images() == before + 1
    assert len(listings(large)) == known + 1


def test_listings_that_nothing_uses_any_more_go_when_the_tree_changed(large, image_folder):
    data = folder(str(large))
    expected, long_ago = data.train.to_dict(), time.time() - listing.UNUSED - 60
    (first,) = listings(large)
    os.utime(first, (long_ago, long_ago))
    (large / "train/a/1.png").unlink()
    settle(large)
    told(large)
    (second,) = listings(large)
    assert second != first and data.train.to_dict() == expected, "who has it mapped keeps it"
    os.utime(second, (long_ago, long_ago))
    told(large)  # a start uses it
    (large / "train/b/1.png").unlink()
    settle(large)
    told(large)
    assert second in listings(large) and len(listings(large)) == 2
    os.utime(second, (long_ago, long_ago))
    other = image_folder({"other/train/a": 3, "other/train/b": 3}) / "other"
    settle(other)
    told(other)
    assert second in listings(large), "another tree's"


def test_the_share_set_apart_is_part_of_what_is_remembered(image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LGQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "REMEMBERED", 5)
    root = image_folder({"train/a": 10, "train/b": 10})
    settle(root)
    sizes = [len(folder(str(root), share).validation) for share in (0.1, 0.5, 0.1, 0.5)]
    assert sizes == [2, 10, 2, 10] and len(listings(root)) == 2


def test_a_cache_that_cannot_be_used_is_one_line(large, monkeypatch):
    told(large)
    (listings(large)[0] / "train.arrow").write_bytes(b"")
    with pytest.raises(UserError, match=re.escape(f"{listings(large)[0]}: damaged")):
        told(large)
    (large / "a file").touch()
    monkeypatch.setenv("LGQ_CACHE", str(large / "a file"))
    with pytest.raises(UserError, match=r"a file: cannot be written .*LGQ_CACHE"):
        told(large)
