"""Real launchers, of one machine and of two over loopback: the same training, and all of them end when one process dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

PROJECT = Path(__file__).resolve().parents[2]
STAGE1, STAGE2 = "stage1_tokenizer/train.py", "stage2_prior/train.py"
SHORT = ["images=64", "report_every=8", "snapshot_every=16", "optim.warmup=8"]
LONG = ["images=1600", "report_every=8", "snapshot_every=80", "validate_every=1600"]
LOST = "stopped: another process has ended or does not answer ("
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Launchers:
    """Starts `accelerate launch` on the CPU, once per machine; ends what is left of them at the end."""

    def __init__(self, folder: Path, environment: dict[str, str], port: Callable[[], int]) -> None:
        self.port = port
        self.folder, self.environment = folder, environment | {"ACCELERATE_USE_CPU": "true"}
        self.started: list[subprocess.Popen[bytes]] = []
        self.workers: dict[str, psutil.Process] = {}  # by their ranks

    def start(self, config: str, machines: int, processes: int, script: str, *arguments: str) -> list[subprocess.Popen[bytes]]:
        """Launch as many processes in all, an equal part of them on every machine."""
        command = [sys.executable, "-m", "accelerate.commands.launch", f"--num_processes={processes}"]
        command += [f"--config_file=configs/accelerate/{config}.yaml", f"--main_process_port={self.port()}"]
        launched = []
        for machine in range(machines):
            which = [f"--num_machines={machines}", f"--machine_rank={machine}", "--main_process_ip=127.0.0.1"]
            with open(self.folder / f"{len(self.started)}.err", "wb") as said:
                words = [*command, *(which if machines > 1 else []), script, *arguments]
                launched.append(subprocess.Popen(words, cwd=PROJECT, env=os.environ | self.environment, stderr=said))
            self.started.append(launched[-1])
        return launched

    def finish(self, *arguments: Any) -> None:
        """Launch and wait; none may fail."""
        for launcher in self.start(*arguments):
            assert launcher.wait(600) == 0, self.said(launcher)

    def said(self, launcher: subprocess.Popen[bytes]) -> str:
        """Its standard error, and its processes'."""
        return (self.folder / f"{self.started.index(launcher)}.err").read_text()

    def find_workers(self) -> None:
        """Look for the processes of the launchers that are running."""
        for launcher in self.started:
            for process in psutil.Process(launcher.pid).children() if launcher.poll() is None else []:
                self.workers[process.environ()["RANK"]] = process

    def close(self) -> None:
        for process in self.workers.values():
            if process.is_running():
                process.kill()
        for launcher in self.started:
            launcher.kill()
            launcher.wait()


@pytest.fixture
def launchers(settings, port, tmp_path) -> Iterator[Launchers]:
    made = Launchers(tmp_path, settings.environment, port)
    yield made
    made.close()


def stats(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "config, processes, script, how",
    [
        ("two_machines", 2, STAGE2, ""),
        ("two_machines", 4, STAGE1, "micro_batch=1"),
        ("fsdp", 2, STAGE2, "micro_batch=3"),
    ],
)
def test_two_machines_learn_what_one_process_learns(
    chain, commands, settings, launchers, note, tmp_path, config, processes, script, how
):
    prior = [f"tokens={chain.tokens}", "prior=maskgit", *settings.stage2, *SHORT, "validate_every=32"]
    tokenizer = [*settings.stage1, *SHORT, "loss.gan_start=0.25"]
    arguments = [*(prior if script == STAGE2 else tokenizer), *filter(None, [how])]
    name = f"2 machines, {processes} processes, {config}.yaml: {script} {how}".strip()
    note("launched", name, None)
    run, one = tmp_path / "run", tmp_path / "one"
    launchers.finish(config, 2, processes, script, f"run={run}", *arguments)
    commands.succeed(script[:-3].replace("/", "."), f"run={one}", *arguments)
    worst = 0.0
    for ours, theirs in zip(stats(run), stats(one), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)
        worst = max(worst, *(abs(ours[key] - theirs[key]) / (abs(theirs[key]) + 0.01) for key in theirs))
    for key, value in stats(one)[0].items():
        assert stats(run)[0][key] == pytest.approx(value, rel=1e-5, abs=1e-7)
    note("launched", name, {"largest relative difference": float(f"{worst:.2g}")})


DEATHS = [(1, "worker"), (2, "worker"), (2, "launcher")]


@pytest.mark.parametrize("machines, who", DEATHS)
def test_all_end_when_one_dies_and_it_goes_on(chain, commands, settings, launchers, note, tmp_path, machines, who):
    name = f"{machines} machines, 2 processes: a {who} is killed"
    note("launched", name, None)
    run = tmp_path / "run"
    arguments = [f"tokens={chain.tokens}", "prior=maskgit", *settings.stage2, *LONG]
    launch = ("two_machines" if machines > 1 else "two_cpu_processes", machines, 2, STAGE2, f"run={run}", *arguments)
    started = launchers.start(*launch)
    commands.poll(lambda: any(run.glob("snapshots/[0-9]*[0-9]")), 300)
    launchers.find_workers()
    workers = list(launchers.workers.values())
    assert len(workers) == 2
    (launchers.workers["1"] if who == "worker" else started[-1]).kill()
    codes = [launcher.wait(120) for launcher in started]
    assert 0 not in codes
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    said = "".join(map(launchers.said, started))
    if who == "worker":
        assert said.count(LOST) == 1, said
    else:  # whose process was told to stop, and told the other one
        assert said.count("stopped by SIGTERM; run the same command again to go on") == 2, said
    assert said.count("Traceback") <= machines, said  # of launchers, which name the process that died
    assert not (run / "prior").exists(), "it died too late to show anything"
    at_death = max(int(path.name) for path in run.glob("snapshots/[0-9]*[0-9]"))

    launchers.finish(*launch)
    commands.together(2, "stage2_prior.train", f"run={tmp_path / 'straight'}", *arguments)
    for file in ("stats.jsonl", "prior/diffusion_pytorch_model.safetensors"):
        assert (run / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()
    note("launched", name, {"exit codes": codes, "images seen": at_death, "outcome": "equal to the uninterrupted run"})
