"""The curve over the number of images: what is measured, what counts as flat, and that the committed curve is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import data_scale
from benchmarks.data_scale import failures, first_start, grow, growth, store
from benchmarks.data_scale_plot import draw
from pipeline.core.data import listing
from pipeline.core.files import read_json

PROJECT = Path(__file__).resolve().parents[2]
RESULT = PROJECT / "results/data_scale.json"
WORK = ["list", "list again", "train order", "tokenize", "write store", "open store", "epoch of store"]


def test_the_committed_curve_is_flat_up_to_imagenet():
    result = read_json(RESULT)
    assert failures(result) == [] and list(result["bytes_per_image"]) == WORK
    for what in WORK:
        images = [row["images"] for row in result["rows"] if row["what"] == what]
        assert min(images) <= 10_000 and max(images) >= 1_281_167 and len(images) >= 5
    assert result["bytes_per_image"] == {what: growth(result["rows"], what) for what in WORK}


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
        rows += [{"images": images} | row for part in (first_start, store) for row in part(images, tmp_path)]
    assert len(list((tmp_path / "cache").glob("listing-*"))) == 1, "the larger tree alone is remembered"
    assert [row["what"] for row in rows] == 2 * ["list", "write store", "open store", "epoch of store"]
    assert all(row[name] >= 0 for row in rows for name in ("private_mb", "mapped_mb", "seconds"))
    draw({"rows": rows, "device": "a CPU"}, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_curve_measured_here_is_flat_too(tmp_path):
    command = [sys.executable, "-m", "benchmarks.data_scale", "--work", str(tmp_path), "--out", str(tmp_path / "curve.json")]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
