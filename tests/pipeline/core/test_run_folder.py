from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from pipeline.core.errors import UserError
from pipeline.core.run_folder import RunFolder, read_stats
from pipeline.core.snapshot import save_snapshot


@dataclass(frozen=True)
class Optim:
    lr: float = 1.0


@dataclass(frozen=True)
class Config:
    run: str = "x"
    seed: int = 0
    workers: int = 0
    optim: Optim = field(default_factory=Optim)


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run")


def test_a_run_says_what_ran_it(run):
    run.open(Config())
    assert (run.path / "config.yaml").read_text() == "run: x\nseed: 0\nworkers: 0\noptim:\n  lr: 1.0\n"
    assert '"torch": "' in (run.path / "versions.json").read_text()


def test_another_configuration_is_refused_once_there_is_a_snapshot(run):
    run.open(Config(seed=3))  # a first attempt with a mistake
    run.open(Config())
    save_snapshot(run.snapshots, 1, {"images_seen": 1})
    run.open(Config())
    run.open(Config(run="moved", workers=2))  # where and how fast, not what
    with pytest.raises(UserError, match=r"a run of another configuration \(seed was 0, now 1; optim.lr was 1.0, now 2.0\)"):
        run.open(Config(seed=1, optim=Optim(2.0)))


def test_statistics_are_rewound_to_the_moment_of_a_snapshot(run):
    run.rewind(0)  # nothing there yet
    run.open(Config())
    for images in (10, 20, 30):
        run.log({"images": images, "loss": 1 / images})
    before = run.stats.read_text()
    run.log({"images": 40, "loss": 0.1})
    with open(run.stats, "a") as file:
        file.write('{"images": 5')  # cut short by a kill
    run.rewind(30)
    assert run.stats.read_text() == before
    assert [record["images"] for record in read_stats(run.path)] == [10, 20, 30]
    run.rewind(0)
    assert run.stats.read_text() == ""


def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises(UserError, match=r"/dev/null/run: cannot be written .*choose another folder with run="):
        RunFolder("/dev/null/run").open(Config())
