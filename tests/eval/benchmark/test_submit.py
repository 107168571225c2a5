"""Submission through submitit, where it is installed (it need not be), and a clear word where it is not."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from eval.benchmark.config import BenchmarkConfig
from eval.benchmark.submit import Task, submit
from pipeline.core.config import load_config
from pipeline.core.errors import UserError


@pytest.fixture
def task(tmp_path) -> Task:
    config = load_config(BenchmarkConfig, "configs/benchmark/smoke.yaml", ["quantizers=[fsq]"])
    return Task(config, tmp_path / "runs", tmp_path / "results", threads=1, clean=False)


def test_without_submitit_it_says_what_to_install(task, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="pip install submitit"):
        submit(task, 2, [])


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")
def test_an_unknown_option_is_one_line(task):
    with pytest.raises(UserError, match="slurm_partitoin") as caught:
        submit(task, 2, ["slurm_partitoin=gpu"], cluster="local")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="write key=value"):
        submit(task, 2, ["gpu"], cluster="local")
