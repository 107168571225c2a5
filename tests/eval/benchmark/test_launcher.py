"""Launchers on one folder share the work, take over from the dead, and let no job run twice at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROJECT = HERE.parents[2]
JOBS = 15  # of two methods: a yardstick, and tokenizer, tokens, quality, two priors, two generations each


class Launchers:
    """Starts real launchers of quick jobs on one folder; what is left of them at the end is killed."""

    def __init__(self, root: Path) -> None:
        self.root, self.started = root, list[subprocess.Popen[str]]()
        self.take(0.05)

    def take(self, seconds: float) -> None:
        """How long each job takes."""
        (self.root / "slow").write_text(str(seconds))

    def hold(self) -> None:
        """Let no job end until `release`."""
        (self.root / "hold").touch()

    def release(self) -> None:
        """Let jobs end again."""
        (self.root / "hold").unlink()

    def start(self, *options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "fake_benchmark.py"), str(self.root), *options],
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def run(self, *options: str) -> tuple[int, str, str]:
        return self.finish(self.start(*options))

    def notes(self) -> list[list[str]]:
        """What the jobs wrote: what, id, process, threads and perhaps a device."""
        file = self.root / "notes.txt"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    def count(self, what: str) -> Counter[str]:
        return Counter(note[1] for note in self.notes() if note[0] == what)

    def state(self, id: str) -> dict:
        return json.loads((self.root / "runs" / id / "job/state.json").read_text())


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def launchers(tmp_path) -> Iterator[Launchers]:
    given = Launchers(tmp_path)
    yield given
    for process in given.started:
        process.kill()
        process.communicate()


def test_every_job_runs_once_after_what_it_needs_and_a_second_start_does_nothing(launchers):
    code, out, err = launchers.run("--jobs", "3")
    assert code == 0, err
    assert launchers.count("end") == launchers.count("start") and len(launchers.count("end")) == JOBS
    assert set(launchers.count("end").values()) == {1}
    position = {id: index for index, (what, id, *_) in enumerate(launchers.notes()) if what == "start"}
    ended = {id: index for index, (what, id, *_) in enumerate(launchers.notes()) if what == "end"}
    for earlier, later in pairwise(["tokenizer/m0-8b-s0", "tokens/m0-8b-s0", "prior/m0-8b-s0-ar", "generation/m0-8b-s0-ar"]):
        assert ended[earlier] < position[later]
    assert "done    generation/m1-8b-s0-ar" in out
    assert launchers.run()[0] == 0 and sum(launchers.count("start").values()) == JOBS


def test_two_launchers_share_the_work_and_nothing_runs_twice(launchers):
    # two jobs can be done at the start: neither ends before each launcher has one
    launchers.hold()
    both = [launchers.start("--jobs", "1") for _ in range(2)]
    until(lambda: len(launchers.notes()) == 2)
    launchers.release()
    results = [launchers.finish(process) for process in both]
    assert [code for code, _, _ in results] == [0, 0], results
    assert set(launchers.count("end").values()) == {1} and len(launchers.count("end")) == JOBS
    assert not launchers.count("TWICE")
    done = [out.count("done  ") for _, out, _ in results]
    assert sum(done) == JOBS and min(done) >= 1


def test_another_launcher_takes_over_from_one_that_was_killed(launchers):
    launchers.hold()
    first = launchers.start("--jobs", "1")
    until(lambda: len(launchers.notes()) == 1)
    second = launchers.start("--jobs", "2")
    until(lambda: len(launchers.notes()) >= 2)
    time.sleep(0.6)
    assert len(launchers.notes()) == 2, "the second launcher must leave the first one's job alone and take the other tokenizer"
    first.kill()
    until(lambda: len(launchers.notes()) == 3)
    launchers.release()
    code, _, err = launchers.finish(second)
    assert code == 0, err
    assert not launchers.count("TWICE") and len(launchers.count("end")) == JOBS
    taken_over = launchers.notes()[0][1]
    assert launchers.count("again") == {taken_over: 1} and launchers.state(taken_over)["attempts"] == 2


def test_a_stop_leaves_no_process_and_no_lock_and_the_next_start_goes_on(launchers):
    launchers.hold()
    process = launchers.start("--jobs", "2")
    until(lambda: len(launchers.notes()) == 2)
    process.send_signal(signal.SIGINT)
    code, out, err = launchers.finish(process)
    assert code == 130 and "run the same command again" in err and "stopping 2 jobs" in out
    for _, id, number, *_ in launchers.notes():
        assert not Path(f"/proc/{number}").exists()
        assert launchers.state(id)["state"] == "stopped"
        newest = max((launchers.root / "runs" / id / "job").glob("lock.*"))
        assert json.loads(newest.read_text())["released"]
    launchers.release()
    assert launchers.run("--jobs", "2")[0] == 0
    assert len(launchers.count("end")) == JOBS and not launchers.count("TWICE")


def test_a_failing_job_stops_nothing_but_what_needs_it_and_is_tried_again(launchers):
    broken = launchers.root / "broken/tokens/m0-8b-s0"
    broken.parent.mkdir(parents=True)
    broken.touch()
    code, out, err = launchers.run("--jobs", "2")
    assert code == 2 and "1 failed, 4 blocked" in err
    assert "FAILED  tokens/m0-8b-s0: error: the disk is on fire" in out
    assert len(launchers.count("end")) == JOBS - 5 and launchers.count("start")["tokens/m0-8b-s0"] == 1
    assert launchers.state("tokens/m0-8b-s0")["error"] == "error: the disk is on fire"
    broken.unlink()
    assert launchers.run("--jobs", "2")[0] == 0
    assert len(launchers.count("end")) == JOBS and set(launchers.count("end").values()) == {1}


def test_artifacts_go_when_they_are_measured_and_are_not_made_again(launchers):
    assert launchers.run("--jobs", "2", "--clean")[0] == 0
    left = {path.name for path in (launchers.root / "runs").rglob("*") if path.is_file()}
    assert all(name.startswith("lock.") or name in ("log.txt", "state.json") for name in left)
    assert len(list((launchers.root / "results").rglob("result.json"))) == 7
    assert launchers.run("--jobs", "2")[0] == 0 and sum(launchers.count("start").values()) == JOBS
    # a measurement that is gone is made again, with what it needs and nothing else
    (launchers.root / "results/jobs/generation/m1-8b-s0-ar/result.json").unlink()
    assert launchers.run("--jobs", "2")[0] == 0
    twice = {id for id, count in launchers.count("end").items() if count == 2}
    assert twice == {"tokenizer/m1-8b-s0", "tokens/m1-8b-s0", "prior/m1-8b-s0-ar", "generation/m1-8b-s0-ar"}


def test_threads_and_gpus_are_dealt_out_and_a_job_that_goes_on_keeps_its_threads(launchers):
    launchers.hold()
    process = launchers.start("--jobs", "2", "--gpus", "GPU-a,7", "--threads", "3")
    until(lambda: len(launchers.notes()) >= 2)
    process.terminate()
    launchers.finish(process)
    assert {note[4] for note in launchers.notes()[:2]} == {"GPU-a", "7"} and {note[3] for note in launchers.notes()} == {"3"}
    stopped = launchers.notes()[0][1]
    launchers.release()
    assert launchers.run("--threads", "1")[0] == 0
    threads = {id: number for what, id, _, number, *_ in launchers.notes() if what == "end"}
    assert threads.pop(stopped) == "3" and "1" in threads.values()
