"""What the benchmarks share: a command line, a process of its own for each case, the peak of memory, a file of one device."""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

import torch

from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.core.run_folder import versions

ROOT = Path(__file__).resolve().parents[1]
CHANGES = "+changes"


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


def slug(device: str) -> str:
    """A device's name as part of a file's: "Intel(R) Xeon(R) Processor, AVX512, 2 threads" is intel_xeon_avx512_2_threads."""
    words = re.findall(r"\w+", re.sub(r"\((R|TM)\)", "", device).lower())
    return "_".join(word for word in words if word not in ("cpu", "processor"))


def result_file(benchmark: str, device: str) -> Path:
    """Where a benchmark writes by default: a file for each device, so that none is refused for another's numbers."""
    return Path(f"results/{benchmark}_{slug(device_name(device))}.json")


def opened(out: Path, device: str, **settings: Any) -> dict[str, Any]:
    """What earlier commands measured on this device with these settings, or these and no rows; UserError for any other.

    Warns where code that no commit has is about to be measured for results/.
    """
    wanted = json.loads(json.dumps({"device": device_name(device), **settings}))  # as it will be read: lists for tuples
    result = read_json(out) if out.exists() else {**wanted, "rows": []}
    for name, value in wanted.items():
        found = result.get(name, "not told")
        if found != value:
            raise UserError(f"{out}: its {name} is {found}, and here it is {value}; give another --out")
    code = measured_by()["code"] or ""
    if code.endswith(CHANGES) and out.resolve().is_relative_to(ROOT / "results"):
        print(f"warning: the code has changes that are not committed, and {out} will say so: {code}", file=sys.stderr)
    return result


def measured_by() -> dict[str, Any]:
    """`versions`, but a commit is not called changed for its results and texts: going on with a result file changes that."""
    found = versions()
    if found["code"] is not None:
        command = ["git", "diff", "--quiet", "HEAD", "--", ".", ":!results", ":!*.md"]
        changed = subprocess.run(command, cwd=ROOT, capture_output=True).returncode
        found["code"] = found["code"].removesuffix(CHANGES) + (CHANGES if changed else "")
    return found


def grouped(rows: Iterable[dict[str, Any]], key: Callable[[dict[str, Any]], Hashable]) -> dict[Any, list[dict[str, Any]]]:
    """The rows of each key, in the order in which the keys come first."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def command_line(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m benchmarks.NAME`, whose help is that module's docstring."""
    title, _, text = (doc or "").partition("\n\n")
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=title.partition(":  python")[0],
        epilog=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
