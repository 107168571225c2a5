"""The curve over the number of images: what is measured, what counts as flat, and that the committed curve is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import data_scale
from benchmarks.data_scale import (
    FLAT,
    MOST,
    SECONDS,
    SIZES,
    UNREMEMBERED,
    changing_start,
    failures,
    first_start,
    grow,
    growth,
    measured,
    store,
)
from benchmarks.data_scale_plot import draw
from pipeline.core.data import listing
from pipeline.core.files import read_json

PROJECT = Path(__file__).resolve().parents[2]
RESULT = PROJECT / "results/data_scale.json"
WORK = ["list changing", "list", "list again", "train order", "tokenize", "write store", "open store", "epoch of store"]


def test_the_committed_curve_is_flat_up_to_imagenet():
    result = read_json(RESULT)
    assert failures(result) == [] and list(result["bytes_per_image"]) == WORK
    for what in WORK:
        images = [row["images"] for row in result["rows"] if row["what"] == what]
        assert tuple(images) == SIZES and min(images) <= 10_000 and max(images) >= 1_281_167
        assert 90_000 < UNREMEMBERED < listing.REMEMBERED - 1000 and UNREMEMBERED in images
    assert result["bytes_per_image"] == {what: growth(result["rows"], what) for what in WORK}


def test_the_limits_are_those_that_the_documentation_promises():
    rows = (PROJECT / "docs/reliability.md").read_text(encoding="utf-8").splitlines()
    (row,) = [row for row in rows if row.startswith("| **Memory does not grow")]
    for promise in (f"below {MOST:.0f} MB", f"{FLAT} bytes an image at most", f"within {SECONDS:.0f} s"):
        assert promise in row
    assert read_json(RESULT)["settings"]["limits"] == dict(
        zip(("private_mb", "bytes_per_image", "second_start_seconds"), (MOST, FLAT, SECONDS), strict=True)
    )


def test_what_is_measured_is_what_was_taken():
    library = Path(torch.__file__).parent / "lib/libtorch_cpu.so"  # a large file that is there
    rows: list[data_scale.Row] = []
    with measured(rows, "both"):
        own = np.ones(4 << 20)
        file = np.memmap(library, np.uint8, "r", shape=16 << 20)
        assert own.sum() + file[::512].sum() > 0
    (row,) = rows
    assert 33 < row["private_mb"] < 50 and 16 < row["mapped_mb"] < 33 and row["seconds"] > 0


def test_memory_in_the_middle_of_a_curve_is_told():
    sizes = {10_000: 5.0, 98_000: MOST + 0.1, 1_300_000: 5.0}
    rows = [{"what": "list again", "images": images, "private_mb": took, "seconds": 1.0} for images, took in sizes.items()]
    result = {"rows": rows, "bytes_per_image": {"list again": growth(rows, "list again")}}
    assert failures(result) == ["list again takes 60.1 MB for 98000 images"]


def test_a_curve_that_rises_and_a_slow_start_are_told():
    rows = [
        {"what": what, "images": images, "private_mb": megabytes, "seconds": seconds}
        for images in (10_000, 1_010_000)
        for what, megabytes, seconds in (("list again", 5.0, images / 1e5), ("write store", 1 + 50 * (images > 10_000), 1.0))
    ]
    result = {"rows": rows, "bytes_per_image": {what: growth(rows, what) for what in ("list again", "write store")}}
    assert result["bytes_per_image"] == {"list again": 0, "write store": 50}
    assert failures(result) == ["write store takes 50.0 bytes an image", "the second start takes 10.1 s"]


def test_a_small_curve_is_measured_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("LGQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data_scale, "CLASSES", 4)
    monkeypatch.setattr(listing, "REMEMBERED", 20)
    rows = []
    for images in (8, 40):
        grow(tmp_path / "tree", images)
        assert len(list((tmp_path / "tree/train").rglob("*.bmp"))) == images
        parts = (changing_start, first_start, store)
        rows += [{"images": images} | row for part in parts for row in part(images, tmp_path)]
    assert len(list((tmp_path / "cache").glob("listing-*"))) == 1, "the larger tree alone is remembered"
    assert [row["what"] for row in rows] == 2 * ["list changing", "list", "write store", "open store", "epoch of store"]
    draw({"rows": rows, "device": "a CPU"}, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_curve_measured_here_is_flat_too(tmp_path):
    command = [sys.executable, "-m", "benchmarks.data_scale", "--work", str(tmp_path), "--out", str(tmp_path / "curve.json")]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
