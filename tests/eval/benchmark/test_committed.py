"""The measurements that the repository holds are those of its configurations and of its code: none would be made again."""

from pathlib import Path

import pytest

from eval.benchmark.benchmark import BenchmarkRun
from eval.benchmark.config import BenchmarkConfig
from pipeline.core.config import load_config

PROJECT = Path(__file__).resolve().parents[3]
NAMES = [path.name for path in (PROJECT / "results/benchmark").iterdir() if path.is_dir()]


@pytest.mark.parametrize("name", NAMES)
def test_committed_measurements_are_up_to_date(name, tmp_path):
    config = load_config(BenchmarkConfig, f"configs/benchmark/{name}.yaml")
    run = BenchmarkRun(config, tmp_path, PROJECT / "results/benchmark")
    measured = [id for id, job in run.jobs.items() if job.is_measurement and run.folders[id].made()]
    assert measured and {id: run.folders[id].outdated() for id in measured if run.folders[id].outdated()} == {}
