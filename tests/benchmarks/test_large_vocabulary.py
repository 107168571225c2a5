"""The benchmark of large vocabularies: it goes on with its own file, and the summary has the medians of the rounds."""

from __future__ import annotations

import sys

import pytest

from benchmarks import large_vocabulary as benchmark
from benchmarks.measuring import device_name
from pipeline.core.errors import UserError
from pipeline.core.files import read_json


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["large_vocabulary", "--codes", "64", "--heads", "tied", *words])
    benchmark.main()


def test_a_file_is_gone_on_with_and_no_other_is_overwritten(tmp_path, monkeypatch):
    seconds = iter((1.0, 2.0, 3.0, 5.0, 30.0, 40.0))
    monkeypatch.setattr(benchmark, "WRITINGS", {"plain": None, "chunked": None})
    monkeypatch.setattr(benchmark, "in_a_process", lambda module, case: {"step_seconds": next(seconds)})
    out = ("--out", f"{tmp_path / 'out.json'}")
    run(monkeypatch, "--rounds", "1", *out)
    assert len(read_json(tmp_path / "out.json")["rows"]) == 2
    run(monkeypatch, "--rounds", "3", *out)
    result = read_json(tmp_path / "out.json")
    assert result["device"] == device_name("cpu") and [row["round"] for row in result["rows"]] == [0, 0, 1, 1, 2, 2]
    assert [(row["writing"], row["rounds"], row["step_seconds"]) for row in result["summary"]] == [
        ("plain", 3, 3.0),
        ("chunked", 3, 5.0),
    ]
    with pytest.raises(UserError, match=r"its settings is .*; give another --out"):
        run(monkeypatch, "--images", "8", *out)
    assert read_json(tmp_path / "out.json") == result


def test_a_small_case_is_measured():
    case = {"codes": 64, "head": "tied", "writing": "chunked", "images": 2, "samples": 1, "steps": 1}
    found = benchmark.measure(case | {"device": "cpu", "threads": 1})
    assert found["step_seconds"] > 0 and found["sampling_seconds_per_image"] > 0 and found["parameters"] > 1e6
