"""`compile`: the same training but for rounding, alone and as two processes with shards; without a compiler, one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

TRAIN = "stage2_prior.train"
SHORT = ["images=48", "report_every=16", "validate_every=48", "snapshot_every=48"]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "stats.jsonl").read_text().splitlines()]


@pytest.mark.skipif(not shutil.which("g++") and not shutil.which("clang++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_compiled_training_learns_the_same(chain, commands, settings, sharding, tmp_path, processes):
    arguments = [f"tokens={chain.tokens}", "prior=maskgit", *settings.stage2, *SHORT]
    commands.succeed(TRAIN, f"run={tmp_path / 'plain'}", *arguments)
    compiled = (TRAIN, f"run={tmp_path / 'compiled'}", *arguments, "compile=true")
    commands.together(processes, *compiled, environment=sharding if processes > 1 else None)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


def test_no_compiler_is_one_line(chain, commands, settings, tmp_path):
    arguments = [f"run={tmp_path / 'run'}", f"tokens={chain.tokens}", "prior=ar", *settings.stage2, *SHORT, "compile=true"]
    result = commands.run(TRAIN, *arguments, environment={"CXX": "no-such-compiler"})
    assert result.code == 2
    assert "error: compile: no C++ compiler (no-such-compiler) on this machine; install one" in result.err
