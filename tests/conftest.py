"""Shared fixtures: commands as quick processes, and one tiny finished chain of runs that many tests read."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

PROJECT = Path(__file__).resolve().parents[1]
HOLD = str(Path(__file__).with_name("hold_until_signalled.py"))
OFFLINE = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

# intervals that do not divide each other: a snapshot falls between two reports
STAGE1 = [
    *("data=shapes", "data.image_size=16", "data.train_per_class=12", "data.validation_per_class=6", "image_size=16"),
    *("images=320", "batch_size=8", "backbone.patch=4", "backbone.channels=[16]", "backbone.layers=1", "workers=0"),
    *("backbone.attention=false", "quantizer=lgq", "quantizer.codebook_size=16", "quantizer.dim=4"),
    *("loss.perceptual=none", "loss.gan_weight=0.1", "loss.gan_start=0.3", "loss.discriminator_channels=8"),
    *("loss.discriminator_layers=2", "optim.lr=2e-3", "optim.warmup=32", "report_every=24", "snapshot_every=40"),
]
STAGE2 = [
    *("images=320", "batch_size=8", "prior.size=nano", "prior.depth=2", "prior.width=32", "prior.heads=2", "prior.dropout=0.1"),
    *("optim.warmup=32", "report_every=24", "validate_every=160", "validation_images=20", "snapshot_every=40"),
]


@dataclass(frozen=True)
class Result:
    """How a command ended: a negative code is that of the signal which killed it."""

    code: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        """What it printed on standard error, without progress bars."""
        return [line for line in self.err.splitlines() if line.strip() and "%|" not in line and "it/s" not in line]


class Commands:
    """Starts commands by their module's name, waits for them and kills them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0
        self.ended: dict[int, int] = {}
        self.files: dict[int, tuple[Path, Path]] = {}
        # -P: the folder tests/ holds a folder pipeline/ too
        server = [sys.executable, "-P", str(Path(__file__).with_name("command_server.py"))]
        self.server = subprocess.Popen(
            server, cwd=PROJECT, env=os.environ | OFFLINE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read_until("ready")

    def start(
        self, module: str, *arguments: Any, environment: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> int:
        """Start `python -m module arguments …` in a folder; gives the process id."""
        self.number += 1
        stdout, stderr = (self.folder / f"{self.number:03d}.{name}" for name in ("out", "err"))
        for file in (stdout, stderr):
            file.touch()  # for those that are killed before they open it
        request = {
            "module": module,
            "arguments": [str(argument) for argument in arguments],
            "environment": dict(environment or {}),
            "folder": str(folder or self.folder),
            "stdout": str(stdout),
            "stderr": str(stderr),
        }
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        pid = self._read_until("started")
        self.files[pid] = (stdout, stderr)
        return pid

    def wait(self, pid: int) -> Result:
        """Wait until a command has ended."""
        while pid not in self.ended:
            self._read_until("ended")
        stdout, stderr = self.files[pid]
        return Result(self.ended.pop(pid), stdout.read_text(), stderr.read_text())

    def run(self, module: str, *arguments: Any, **options: Any) -> Result:
        """Start a command and wait for it."""
        return self.wait(self.start(module, *arguments, **options))

    def succeed(self, module: str, *arguments: Any, **options: Any) -> Result:
        """Run a command that must not fail."""
        result = self.run(module, *arguments, **options)
        assert result.code == 0, result.err
        return result

    def together(self, processes: int, module: str, *arguments: Any, environment: Mapping[str, str] | None = None) -> None:
        """Run a command as that many processes of one group; none may fail."""
        results = [self.wait(pid) for pid in self.start_group(processes, module, *arguments, environment=environment)]
        assert [result.code for result in results] == [0] * processes, "\n".join(result.err for result in results)

    def start_group(
        self, processes: int, module: str, *arguments: Any, environment: Mapping[str, str] | None = None
    ) -> list[int]:
        """Start a command as that many processes of one group, as a launcher would."""
        group = {
            "WORLD_SIZE": f"{processes}",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": f"{free_port()}",
            "ACCELERATE_USE_CPU": "true",
            **(environment or {}),
        }
        return [
            self.start(module, *arguments, environment={**group, "RANK": f"{rank}", "LOCAL_RANK": f"{rank}"})
            for rank in range(processes)
        ]

    def stop_when(self, pid: int, condition: Callable[[], bool], number: int = signal.SIGKILL) -> Result:
        """Send a signal as soon as the condition holds."""
        self.poll(condition, pid=pid)
        assert _is_running(pid), f"ended before the signal: {self.wait(pid)}"
        os.kill(pid, number)
        return self.wait(pid)

    def poll(self, condition: Callable[[], bool], seconds: float = 90, pid: int | None = None) -> None:
        """Wait until a condition holds; fails at once where a command that has ended, `pid`, can no longer make it hold."""
        deadline = time.monotonic() + seconds
        while not condition():
            if pid is not None and not _is_running(pid):
                assert condition(), f"ended before it happened: {self.wait(pid)}"
                return
            assert time.monotonic() < deadline, "nothing happened"
            time.sleep(0.002)

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(10)

    def _read_until(self, kind: str) -> int:
        assert self.server.stdout is not None
        for line in self.server.stdout:
            message = json.loads(line)
            if "ended" in message:
                self.ended[message["ended"]] = message["code"]
            if kind in message:
                return message[kind]
        raise RuntimeError("the command server ended")


def _is_running(pid: int) -> bool:
    """Whether a command has not ended yet, or the command server has not yet noticed it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def free_port() -> int:
    """A port that nothing listens at, from below those that the system hands out by itself: none may be taken by chance."""
    draw = random.SystemRandom()
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port := draw.randrange(20_000, 32_000)))
            except OSError:
                continue
            return port


@pytest.fixture(scope="session")
def port() -> Callable[[], int]:
    """`free_port`."""
    return free_port


def _kept_handlers() -> Iterator[None]:
    """Gives back the handlers of SIGTERM and SIGINT that were there before, pytest's own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


handlers = pytest.fixture(_kept_handlers, name="handlers")
module_handlers = pytest.fixture(_kept_handlers, scope="module", name="module_handlers")


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Commands as processes that start within milliseconds."""
    server = Commands(tmp_path_factory.mktemp("commands"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def settings() -> SimpleNamespace:
    """Settings of tiny trainings, `stage1` and `stage2`, and the environment of processes, offline and with one thread.

    `hold`: the environment of a command that waits for its signal at a place (hold_until_signalled.py).
    """

    def hold(at: object) -> dict[str, str]:
        return {"RUN_BEFORE": HOLD, "HOLD_AT": f"{at}"}

    return SimpleNamespace(stage1=STAGE1, stage2=STAGE2, environment=OFFLINE, hold=hold)


@pytest.fixture(scope="session")
def chain(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One tiny finished run of everything; read-only: `root`, `tokenizer`, `tokens`, `maskgit`, `ar` are folders."""
    root = tmp_path_factory.mktemp("chain") / "runs"
    parts = {name: root / name for name in ("tokenizer", "tokens", "maskgit", "ar")}
    commands.succeed("stage1_tokenizer.train", f"run={parts['tokenizer']}", *STAGE1)
    commands.succeed("pipeline.tokenize_dataset", "--tokenizer", parts["tokenizer"], "--shard-images", 16, "--batch-size", 16)
    for prior in ("maskgit", "ar"):
        commands.succeed("stage2_prior.train", f"run={parts[prior]}", f"tokens={parts['tokens']}", f"prior={prior}", *STAGE2)
    return SimpleNamespace(root=root, **parts)


@pytest.fixture
def runs(chain: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """A copy of the chain to spoil, whole in itself."""
    root = tmp_path / "runs"
    shutil.copytree(chain.root, root)
    for file in root.rglob("*.json"):
        file.write_text(file.read_text().replace(str(chain.root), str(root)))
    for file in root.rglob("config.yaml"):
        file.write_text(file.read_text().replace(str(chain.root), str(root)))
    return SimpleNamespace(root=root, **{name: root / name for name in ("tokenizer", "tokens", "maskgit", "ar")})


@pytest.fixture(scope="session")
def sharding() -> dict[str, str]:
    """What accelerate's launcher tells its processes of the shipped settings."""
    file = str(PROJECT / "configs/accelerate/fsdp.yaml")
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", file, "train.py"]))
    environment = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in environment.items() if name.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))}
