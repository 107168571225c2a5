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

    def place(self, id: str) -> Path:
        return self.root / "runs" / id

    def take_over(self, id: str) -> None:
        """What another machine's launcher does that claims a job's lock and starts it."""
        place = self.place(id) / "job"
        number = max(int(path.suffix[1:]) for path in place.glob("lock.*")) + 1
        holder = {"host": "node7", "machine": "node7 boot pid:[1]", "processes": [["1", "5"]], "since": 0.0, "released": False}
        (place / f"lock.{number:06d}").write_text(json.dumps(holder))

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
    assert "done    generation/m1-8b-s0-ar" in out and not launchers.count("UNSEEN"), "a job ran before its lock knew of it"
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
    assert out.count("FAILED  tokens/m0-8b-s0: error: the disk is on fire (see ") == 1
    assert len(launchers.count("end")) == JOBS - 5 and launchers.count("start")["tokens/m0-8b-s0"] == 1
    assert launchers.state("tokens/m0-8b-s0")["error"].startswith("error: the disk is on fire (see ")
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


def test_the_heart_beats_on_while_a_job_writes_its_snapshot(launchers):
    (launchers.root / "snapshot").touch()
    launchers.hold()
    process = launchers.start("--jobs", "1", "--heartbeat", "0.05")
    until(lambda: len(launchers.notes()) == 1)
    lock = launchers.place(launchers.notes()[0][1]) / "job/lock.000001"
    process.terminate()
    until(lambda: launchers.count("stopping").total() == 1)
    for _ in range(3):
        beat = lock.stat().st_mtime_ns
        until(lambda beat=beat: lock.stat().st_mtime_ns > beat)
    assert process.poll() is None and not json.loads(lock.read_text())["released"]
    (launchers.root / "snapshot").unlink()
    assert launchers.finish(process)[0] == 143 and json.loads(lock.read_text())["released"]


@pytest.mark.parametrize("heartbeat", ["0.05", "600"], ids=["seen at a beat", "seen at the end"])
def test_a_job_that_another_launcher_took_over_is_stopped_and_its_state_is_left_alone(launchers, heartbeat):
    launchers.hold()
    first = launchers.start("--jobs", "1", "--methods", "1", "--heartbeat", heartbeat)
    until(lambda: len(launchers.notes()) == 1)
    _, id, number, *_ = launchers.notes()[0]
    file = launchers.place(id) / "job/state.json"
    theirs = json.dumps({"state": "running", "attempts": 7})
    launchers.take_over(id)
    if heartbeat == "600":
        file.write_text(theirs)
        launchers.release()
        until(lambda: not Path(f"/proc/{number}").exists())
    else:
        until(lambda: not Path(f"/proc/{number}").exists())
        file.write_text(theirs)
    assert first.poll() is None  # it waits for the other
    first.terminate()
    code, out, _ = launchers.finish(first)
    assert code == 143 and f"lost    {id}" in out and "done " not in out and file.read_text() == theirs


def test_what_another_launcher_works_on_or_with_is_not_cleaned_away(launchers):
    assert launchers.run("--jobs", "2")[0] == 0
    launchers.take_over("tokens/m0-8b-s0")  # which reads a tokenizer, too
    launchers.take_over("quality/m1-8b-s0")
    assert launchers.run("--clean")[0] == 0
    left = {path.relative_to(launchers.root / "runs").as_posix() for path in (launchers.root / "runs").rglob("*.json")}
    left = {path for path in left if "/job/" not in path}
    tokenizers = {f"tokenizer/m{number}-8b-s0/tokenizer/config.json" for number in (0, 1)}
    assert left == {"tokens/m0-8b-s0/store.json", *tokenizers}


def test_a_damaged_state_or_an_artifact_of_other_settings_fails_its_job_alone_and_says_what_to_delete(launchers):
    file = launchers.place("tokens/m0-8b-s0") / "job/state.json"
    file.parent.mkdir(parents=True)
    file.write_text("{")
    place = launchers.place("prior/m1-8b-s0-ar")
    (place / "job").mkdir(parents=True)
    (place / "prior").mkdir()
    (place / "prior/config.json").write_text("precious")
    (place / "job/state.json").write_text(json.dumps({"state": "done", "inputs": {"job": "another"}}))
    code, out, err = launchers.run("--jobs", "2")
    assert code == 2 and "2 failed, 5 blocked" in err and len(launchers.count("end")) == JOBS - 7
    assert out.count(f"FAILED  tokens/m0-8b-s0: {file}: damaged; delete this file") == 1 and file.read_text() == "{"
    assert out.count(f"FAILED  prior/m1-8b-s0-ar: {place}: was made with other settings (job was 'another'") == 1
    assert (place / "prior/config.json").read_text() == "precious"


def test_the_most_memory_of_all_attempts_is_recorded(launchers):
    (launchers.root / "big").write_text("700")
    launchers.hold()
    process = launchers.start("--jobs", "1", "--methods", "1")
    until(lambda: len(launchers.notes()) == 1)
    process.terminate()
    launchers.finish(process)
    big = launchers.notes()[0][1]
    (launchers.root / "big").unlink()
    launchers.release()
    assert launchers.run("--methods", "1")[0] == 0
    assert 700 < launchers.state(big)["peak_mb"] < 1400 and launchers.state(big)["attempts"] == 2
    told = json.loads((launchers.root / "results/jobs/generation/m0-8b-s0-ar/job.json").read_text())
    ids = {"generation/m0-8b-s0-ar", "prior/m0-8b-s0-ar", "tokens/m0-8b-s0", "tokenizer/m0-8b-s0"}
    assert set(told["peak_mb"]) == set(told["seconds"]) == ids and told["peak_mb"][big] == launchers.state(big)["peak_mb"]
    assert all(0 < value < 700 for id, value in told["peak_mb"].items() if id != big)
