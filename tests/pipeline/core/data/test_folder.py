import json
import os

import pytest
from PIL import Image

from pipeline.core.data.folder import folder
from pipeline.core.data.images import OrderedImages, UnreadableImages, ordered_batches
from pipeline.core.errors import UserError


def names_in(split):
    return [os.path.relpath(row["image"]["path"]).split(os.sep)[-3:] for row in split]


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_layout(image_folder, validation):
    root = image_folder({"train/dog": 3, "train/cat": 2, f"{validation}/cat": 1, f"{validation}/dog": 1})
    (root / "train" / "cat" / "notes.txt").touch()
    (root / "train" / "cat" / "._0.png").touch()
    data = folder(str(root))
    assert data.class_names == data.class_ids == data.groups == ("cat", "dog")
    assert data.train["label"][:] == [0, 0, 1, 1, 1] and data.validation["label"][:] == [0, 1]
    assert names_in(data.train)[2] == ["train", "dog", "0.png"]
    assert names_in(data.validation)[1] == [validation, "dog", "0.png"]
    assert len(next(ordered_batches(OrderedImages(data.train, 8), 9))["image"]) == 5


def test_validation_is_set_apart_per_class(image_folder):
    root = image_folder({"train/a": 20, "train/b": 2})
    data, again = folder(str(root), validation_share=0.2), folder(str(root), validation_share=0.2)
    assert data.validation["label"][:] == [0] * 4 + [1] and data.train["label"][:] == [0] * 16 + [1]
    assert names_in(data.validation) == names_in(again.validation) and data.fingerprint == again.fingerprint
    everything = names_in(data.train) + names_in(data.validation)
    assert len({tuple(name) for name in everything}) == len(everything) == 22
    assert folder(str(root), validation_share=0.3).fingerprint != data.fingerprint


def test_fingerprint_follows_content_and_names(image_folder):
    root = image_folder({"train/a": 2, "val/a": 1})
    before = folder(str(root)).fingerprint
    Image.new("RGB", (9, 9)).save(root / "val" / "a" / "0.png")
    changed = folder(str(root)).fingerprint
    (root / "classes.txt").write_text("a apple\n")
    assert len({before, changed, folder(str(root)).fingerprint}) == 3


@pytest.mark.parametrize("file, text", [
    ("synset_words.txt", "n01 tench, Tinca tinca\nn02 goldfish\n"),
    ("classes.txt", "\nn02\tgoldfish\nn01\ttench, Tinca tinca\nn09 unused"),
    ("labels.json", json.dumps({"n01": "tench, Tinca tinca", "n02": "goldfish"})),
])
def test_readable_names(image_folder, file, text):
    root = image_folder({"train/n01": 1, "train/n02": 1, "val/n01": 1})
    (root / file).write_text(text)
    data = folder(str(root))
    assert data.class_names == ("tench, Tinca tinca", "goldfish") and data.class_ids == ("n01", "n02")


@pytest.mark.parametrize("count, name", [(1000, "golden retriever"), (999, "n00000207")])
def test_imagenet_names_for_exactly_its_1000_synsets(tmp_path, count, name):
    for label in range(count):
        for split in ("train", "val"):
            (tmp_path / split / f"n{label:08d}").mkdir(parents=True)
            (tmp_path / split / f"n{label:08d}" / "0.JPEG").touch()
    data = folder(str(tmp_path))
    assert data.class_names[207] == name and data.class_ids[207] == "n00000207"


@pytest.mark.parametrize("counts, message", [
    ({}, "train is missing; expected <path>/train/<class>"),
    ({"train": 2}, "train has no class folders"),
    ({"train/a": 0}, "a has no images"),
    ({"train/a": 2, "val/a": 0}, "val.a has no images"),
    ({"train/a": 2, "val": 2}, "val has no class folders"),
    ({"train/a": 2, "val/b": 2}, "b has no training images"),
    ({"train/a": 1}, "class a has a single image"),
    ({"train/a": 2, "val/a": 1, "validation/a": 1}, "both validation and val"),
])
def test_one_clear_line_for_a_folder_that_is_wrong(image_folder, counts, message):
    root = image_folder(counts)
    with pytest.raises(UserError, match=message) as error:
        folder(str(root))
    assert "\n" not in str(error.value)


def test_other_errors(image_folder, tmp_path):
    with pytest.raises(UserError, match="nowhere is no folder"):
        folder(str(tmp_path / "nowhere"))
    root = image_folder({"train/a": 3, "train/b": 3})
    with pytest.raises(UserError, match=r"validation_share: 1\.5"):
        folder(str(root), validation_share=1.5)
    (root / "labels.json").write_text('{"a": "apple"}')
    with pytest.raises(UserError, match="no name for the folder b"):
        folder(str(root))
    (root / "labels.json").write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        folder(str(root))


def test_broken_file_is_named_by_its_path(image_folder):
    root = image_folder({"train/a": 3, "val/a": 1}, suffix="jpg")
    (root / "train" / "a" / "1.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    batch = next(ordered_batches(OrderedImages(folder(str(root)).train, 8), 8))
    assert batch["index"].tolist() == [0, 2] and batch["unreadable"] == (str(root / "train" / "a" / "1.jpg"),)
    with pytest.raises(UserError, match=r"1 of 3 images are unreadable.*1\.jpg"):
        UnreadableImages(0.01, at_least=3).update(batch)
