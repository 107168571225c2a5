"""One holder at a time, whoever asks and however the last one ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.benchmark import locks
from eval.benchmark.locks import Lock, process_start

PROJECT = Path(__file__).resolve().parents[3]
# every process claims as often as it can for some seconds, and goes on, if need be for a minute, until it has claimed often
# enough: a disk may be slow; who holds the lock owns the file `inside` alone
CONTENDER = """
import os, sys, time
from pathlib import Path
from eval.benchmark.locks import Lock
folder, start, seconds, least = Path(sys.argv[1]), time.time(), float(sys.argv[2]), int(sys.argv[3])
count = 0
while time.time() < start + (seconds if count >= least else max(seconds, 60)):
    lock = Lock(folder)
    if lock.claim():
        os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))  # raises where two are inside
        count += 1
        os.remove(folder / "inside")
        if count % 5 == 0 and len(sys.argv) > 4:
            os._exit(9)  # dies with the lock
        lock.release()
print(count)
"""


def contenders(folder: Path, number: int, *options: str) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen(
            [sys.executable, "-c", CONTENDER, str(folder), *options],
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(number)
    ]


def test_of_many_processes_one_at_a_time_is_inside(tmp_path):
    results = [(*process.communicate(timeout=300), process.returncode) for process in contenders(tmp_path, 4, "1.5", "2")]
    assert [code for _, _, code in results] == [0] * 4, results
    assert all(int(out) >= 2 for out, _, _ in results), results


def test_the_locks_of_the_dead_are_taken_over_by_one_of_those_who_ask(tmp_path):
    for _ in range(3):
        processes = contenders(tmp_path, 3, "1.0", "0", "dies")
        for process in processes:
            _, err = process.communicate(timeout=300)
            assert process.returncode in (0, 9), err
    assert Lock(tmp_path).claim()


def test_a_holder_is_seen_and_lets_go(tmp_path):
    lock, other = Lock(tmp_path), Lock(tmp_path)
    assert other.holder() is None and lock.claim()
    holder = other.holder()
    assert holder is not None and [str(os.getpid()), process_start(os.getpid())] in holder.processes
    assert not other.claim() and lock.beat() and not other.beat()
    lock.release()
    assert other.holder() is None and other.claim() and not lock.claim()


def test_a_lock_is_held_while_a_child_lives_though_its_holder_died(tmp_path):
    child = subprocess.Popen(["sleep", "60"])
    lock = Lock(tmp_path)
    assert lock.claim()
    lock.add_process(child.pid)
    file = next(tmp_path.glob("lock.*"))
    values = json.loads(file.read_text())
    values["processes"] = values["processes"][1:]  # what remains when this process is gone
    file.write_text(json.dumps(values))
    assert not Lock(tmp_path).claim()
    child.kill()
    deadline = time.monotonic() + 30
    while not Lock(tmp_path).claim():  # once it is dead, though its parent has not asked after it
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.wait()


def test_a_process_id_that_another_process_got_is_not_the_holder(tmp_path):
    lock = Lock(tmp_path)
    assert lock.claim()
    file = next(tmp_path.glob("lock.*"))
    values = json.loads(file.read_text())
    values["processes"][0][1] = "17"  # a process of our id that started at another time
    file.write_text(json.dumps(values))
    assert Lock(tmp_path).claim()


def foreign(folder: Path, silent: float) -> Path:
    """A lock held on another machine, whose heart beat last so many seconds ago."""
    file = folder / "lock.000004"
    own = {"host": "node7", "machine": "node7 boot pid:[1]", "processes": [["1", "5"]], "since": 0.0, "released": False}
    file.write_text(json.dumps(own))
    os.utime(file, (time.time() - silent, time.time() - silent))
    return file


def test_on_another_machine_a_silent_heart_is_death(tmp_path):
    foreign(tmp_path, silent=60)
    lock = Lock(tmp_path)
    holder = lock.holder()
    assert holder is not None and holder.host == "node7" and not lock.claim()
    foreign(tmp_path, silent=locks.STALE + 5)
    assert lock.claim() and lock.mine is not None and lock.mine.name == "lock.000005"


def test_a_holder_that_was_thought_dead_learns_of_it(tmp_path):
    lock = Lock(tmp_path)
    assert lock.claim() and lock.beat()
    (tmp_path / "lock.000002").write_text((tmp_path / "lock.000001").read_text())
    assert not lock.beat()


@pytest.mark.parametrize("content", ["", "{", '{"host": 1}'])
def test_a_damaged_lock_counts_as_held_until_it_is_old(tmp_path, content):
    file = tmp_path / "lock.000001"
    file.write_text(content)
    assert not Lock(tmp_path).claim()
    os.utime(file, (0, 0))
    assert Lock(tmp_path).claim()


def test_nothing_is_left_aside(tmp_path):
    lock = Lock(tmp_path)
    assert lock.claim() and not Lock(tmp_path).claim()
    lock.release()
    assert [path.name for path in tmp_path.iterdir()] == ["lock.000001"]


def test_one_of_many_takes_over_from_another_machine_that_fell_silent(tmp_path):
    foreign(tmp_path, silent=locks.STALE + 5)
    for process in contenders(tmp_path, 3, "1.0", "0"):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err


def test_a_link_whose_answer_was_lost_is_ours_and_one_in_the_way_is_not(tmp_path, monkeypatch):
    link = os.link

    def lost(source, target):
        link(source, target)
        raise FileExistsError  # the request was repeated

    monkeypatch.setattr(os, "link", lost)
    lock = Lock(tmp_path)
    assert lock.claim() and lock.held()
    monkeypatch.setattr(os, "link", link)
    # a stale listing: the rival thinks the next number free
    rival = Lock(tmp_path)
    monkeypatch.setattr(rival, "_newest", lambda: 0)
    assert not rival.claim() and lock.held()


def test_a_child_records_itself_before_its_program_runs(tmp_path):
    lock = Lock(tmp_path)
    assert lock.claim()
    child = subprocess.Popen(["sleep", "60"], preexec_fn=lambda: lock.add_process(os.getpid()))
    holder = Lock(tmp_path).holder()
    assert holder is not None and [number for number, _ in holder.processes] == [str(os.getpid()), str(child.pid)]
    child.kill()
    child.wait()
    lock.release()
    assert Lock(tmp_path).claim()
