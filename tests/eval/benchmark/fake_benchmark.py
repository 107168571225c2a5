"""A benchmark whose jobs take a moment and train nothing, run by a real launcher:  python fake_benchmark.py FOLDER [options]

What a job does is written in WORKER: it notes its start and end, keeps a file that only one at a time may hold, and leaves what
the real command would. A file FOLDER/broken/<id> makes it fail; FOLDER/slow holds the seconds that each takes; none ends while
there is a file FOLDER/hold, nor, told to stop, while there is a file FOLDER/snapshot. FOLDER/big holds MB that each takes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from eval.benchmark.config import BenchmarkConfig, Method
from eval.benchmark.estimate import Costs
from eval.benchmark.jobs import MARKERS, JobFolder
from eval.benchmark.launcher import Launcher, Slots
from eval.benchmark.locks import HEARTBEAT
from eval.benchmark.plan import PlannedJob, all_jobs
from eval.benchmark.table import Table
from eval.results import FILE
from pipeline.core.command import run_command
from pipeline.core.errors import UserError

WORKER = """
import json, os, signal, sys, time
root, id, made = sys.argv[1:]
busy = os.path.join(root, "busy-" + id.replace("/", "+"))
def note(what):
    with open(os.path.join(root, "notes.txt"), "a") as notes:
        told = [os.environ["OMP_NUM_THREADS"], os.environ.get("CUDA_VISIBLE_DEVICES", "")]
        notes.write(" ".join([what, id, str(os.getpid()), *told]) + "\\n")
def stop(number, frame):
    note("stopping")
    while os.path.exists(os.path.join(root, "snapshot")):
        time.sleep(0.02)
    os._exit(143)
if os.path.exists(os.path.join(root, "snapshot")):
    signal.signal(signal.SIGTERM, stop)
locks = os.path.join(root, "runs", id, "job")
lock = json.load(open(os.path.join(locks, max(name for name in os.listdir(locks) if name.startswith("lock.")))))
if str(os.getpid()) not in [number for number, start in lock["processes"]]:
    note("UNSEEN")
if os.path.exists(os.path.join(root, "big")):
    taken = b"x" * int(float(open(os.path.join(root, "big")).read()) * 1e6)
try:
    os.close(os.open(busy, os.O_CREAT | os.O_EXCL))
except FileExistsError:
    holder = [line.split() for line in open(os.path.join(root, "notes.txt")) if line.split()[1] == id][-1]
    try:
        alive = open(f"/proc/{holder[2]}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # which a read says of one that has just gone
        alive = False
    note("TWICE" if alive else "again")
else:
    note("start")
time.sleep(float(open(os.path.join(root, "slow")).read()))
while os.path.exists(os.path.join(root, "hold")):
    time.sleep(0.02)
if os.path.exists(os.path.join(root, "broken", id)):
    os.remove(busy)
    print("something else")
    print("error: the disk is on fire\\n 50%|##   | 1/2 [00:01<00:01]", file=sys.stderr)
    sys.exit(2)
os.makedirs(os.path.dirname(made), exist_ok=True)
open(made, "w").write('{"inputs": {}}')
os.remove(busy)
note("end")
"""


def config(methods: int = 2) -> BenchmarkConfig:
    """Two priors, one budget, one seed."""
    return BenchmarkConfig(
        name="fake",
        stage1="s",
        stage2={"maskgit": "m", "ar": "a"},
        eval="e",
        quantizers=tuple(Method(name=f"m{number}") for number in range(methods)),
        bits=(8.0,),
        seeds=(0,),
        guidance={"maskgit": (1.0,), "ar": (1.0,)},
    )


def folders(root: Path, jobs: dict[str, PlannedJob]) -> dict[str, JobFolder]:
    """Where they work."""
    return {id: JobFolder(job, {"job": id}, root / "runs", root / "results") for id, job in jobs.items()}


def main() -> None:
    """Run the launcher."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--methods", type=int, default=2)
    parser.add_argument("--gpus", default="")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clean", action="store_true")
    parser.add_argument("--heartbeat", type=float, default=HEARTBEAT)
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    jobs = all_jobs(config(arguments.methods))
    places = folders(root, jobs)

    def command(job: PlannedJob) -> list[str]:
        made = places[job.id].out / FILE if job.is_measurement else places[job.id].path / MARKERS[job.kind]
        return [sys.executable, "-S", "-c", WORKER, f"{root}", job.id, f"{made}"]

    devices = tuple(arguments.gpus.split(",")) if arguments.gpus else ()
    table = Table("fake", jobs, places, Costs(jobs, {}), arguments.jobs)
    slots = Slots(arguments.jobs, arguments.threads, devices)
    standing = Launcher(jobs, places, command, slots, table, arguments.clean, heartbeat=arguments.heartbeat).run()
    if standing.failed:
        raise UserError(f"{len(standing.failed)} failed, {len(standing.blocked)} blocked")


if __name__ == "__main__":
    run_command(main)
