"""What trainings cost by a few of their steps: the arithmetic, the plan that goes by it, and the real commands."""

import pytest

from eval.benchmark.benchmark import BenchmarkRun
from eval.benchmark.config import BenchmarkConfig
from eval.benchmark.timing import StepTimer, read_step_times, write_step_times
from pipeline.core.config import load_config
from pipeline.core.errors import UserError

SMOKE = "configs/benchmark/smoke.yaml"


@pytest.fixture
def run(tmp_path):
    return BenchmarkRun(load_config(BenchmarkConfig, SMOKE), tmp_path / "runs", tmp_path / "results", 1, 1)


def test_seconds_are_those_of_the_whole_training(run, tmp_path, monkeypatch):
    seconds = {"tokenizer": (9.0, 0.25), "prior": (4.0, 0.125), "tokens": (1.0, 0.0)}

    def command(timer, job, runs, *settings):
        start, per_image = seconds[job.kind]
        images = next((int(text[7:]) for text in settings if text.startswith("images=")), 0)
        assert job.kind == "tokens" or images in (40, 80)  # 5 and 10 steps of 8 images
        (runs / job.id).mkdir(parents=True, exist_ok=True)
        return start + per_image * images

    monkeypatch.setattr(StepTimer, "_run", command)
    run.time_steps(5)
    times = read_step_times(run.runs)
    assert times["tokenizer/fsq-5b-s0"] == pytest.approx(9 + 0.25 * 160)
    assert times["prior/lgq-5b-s0-maskgit"] == pytest.approx(4 + 0.125 * 160)
    shown = run.describe()
    assert shown.count("timed") == 2 and "49 s" in shown
    run.costs.learn({"tokenizer/fsq-5b-s0": 7.0})
    assert run.costs.of(run.jobs["tokenizer/fsq-5b-s0"]) == (7.0, "measured")
    assert run.costs.of(run.jobs["tokenizer/lgq-5b-s0"])[1] == "timed"  # its own, rather than the mean of others


def test_times_of_several_commands_are_kept_and_damaged_ones_are_named(tmp_path):
    write_step_times(tmp_path, {"a": {"seconds": 1.0}})
    write_step_times(tmp_path, {"b": {"seconds": 2.0}})
    assert read_step_times(tmp_path) == {"a": 1.0, "b": 2.0}
    (tmp_path / "step_times.json").write_text("[]")
    with pytest.raises(UserError, match="damaged"):
        read_step_times(tmp_path)


@pytest.mark.slow
def test_the_real_commands_are_timed(commands, tmp_path):
    shown = commands.succeed("eval.benchmark.__main__", SMOKE, "--time-steps", 3, "quantizers=[fsq]", "--runs", tmp_path).out
    assert "ms an image" in shown and shown.count("timed") == 2
    times = read_step_times(tmp_path / "smoke")
    assert set(times) == {"tokenizer/fsq-5b-s0", "prior/fsq-5b-s0-maskgit"} and all(0 < value < 600 for value in times.values())
