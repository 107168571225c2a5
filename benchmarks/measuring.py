"""What the benchmarks measure with: a process of its own for each case, the peak of its memory, a file of one device."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.core.errors import UserError
from pipeline.core.files import read_json


def in_a_process(module: str, case: dict[str, Any]) -> dict[str, Any]:
    """What `python -m module --case …` prints on its last line, by a fresh process; RuntimeError with its errors."""
    run = subprocess.run([sys.executable, "-m", module, "--case", json.dumps(case)], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{case}: {run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


class Memory:
    """The most memory in use since its making, beyond what was in use then: resident on a CPU (Linux), else allocated."""

    def __init__(self, device: torch.device | str) -> None:
        self.cuda = torch.device(device).type != "cpu"
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            forget_peak()
        self.before = torch.cuda.memory_allocated() if self.cuda else resident("VmRSS")

    def peak(self) -> int:
        """Bytes."""
        return (torch.cuda.max_memory_allocated() if self.cuda else resident("VmHWM")) - self.before


def resident(field: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at most since `forget_peak`."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) * 1024


def forget_peak() -> None:
    """Give freed memory back to the system, and count the peak from here."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def device_name(device: str) -> str:
    """The processor's name, the instructions that torch takes, and its threads; or the GPU's name."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    model = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{model[0] if model else 'CPU'}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def result_file(benchmark: str, device: str) -> Path:
    """Where a benchmark writes by default: cpu, or the GPU's name, behind its own."""
    slug = "cpu" if device == "cpu" else re.sub(r"\W+", "_", device_name(device).lower())
    return Path(f"results/{benchmark}_{slug}.json")


def opened(out: Path, device: str, **first: Any) -> dict[str, Any]:
    """What earlier commands measured on this device, or `first` and no rows; UserError for a file of another device."""
    name = device_name(device)
    result = read_json(out) if out.exists() else {"device": name, **first, "rows": []}
    if result["device"] != name:
        raise UserError(f"{out}: measured on {result['device']}, and this is {name}; give another --out")
    return result
