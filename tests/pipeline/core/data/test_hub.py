import time

import pytest

from pipeline.core.data.hub import hub
from pipeline.core.data.images import OrderedImages, ordered_batches
from pipeline.core.errors import UserError

NO_SUCH_DATA = "lgq-pipeline/there-is-no-such-data-set"


@pytest.fixture
def local(image_folder, monkeypatch, tmp_path):
    """A local folder that `datasets` reads as an image data set; its cache stays in the test's folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return str(image_folder({"data/train/cat": 2, "data/train/dog": 3, "data/validation/dog": 1}) / "data")


def test_columns_splits_and_names(local):
    data, again = hub(local), hub(local)
    assert data.class_names == data.class_ids == ("cat", "dog")
    assert data.train["label"][:] == [0, 0, 1, 1, 1] and data.validation["label"][:] == [1]
    assert data.train.column_names == ["image", "label"]
    assert next(ordered_batches(OrderedImages(data.train, 8), 8))["image"].shape == (5, 3, 8, 8)
    assert data.fingerprint == again.fingerprint


@pytest.mark.parametrize("options, message", [
    ({"validation": "test"}, "no split 'test'; it has train, validation"),
    ({"image_column": "img"}, "image_column: 'img' .* holds no images; its columns: image, label"),
    ({"label_column": "image"}, "label_column: 'image' .* holds no class labels"),
])
def test_what_is_not_there(local, options, message):
    with pytest.raises(UserError, match=message):
        hub(local, **options)


def test_unreachable_or_unknown_is_one_line_within_seconds():
    start = time.perf_counter()
    with pytest.raises(UserError, match=f"data.dataset: {NO_SUCH_DATA}") as error:
        hub(NO_SUCH_DATA)
    assert "\n" not in str(error.value) and time.perf_counter() - start < 15


def test_offline_says_so(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=f"{NO_SUCH_DATA} cannot be loaded .*HF_HUB_OFFLINE is set: unset it"):
        hub(NO_SUCH_DATA)
