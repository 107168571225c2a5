"""The stated scale: 196,560 and 262,144 codes, 36 bits, in memory that does not hold vectors times codes.

A step each, in one process that is not this one, its peak counted anew for every case.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from stage1_tokenizer.quantizers import Quantizer, build_quantizer

N = 1024  # a table of N x K numbers alone would take 1 GB
K = 1 << 18
CASES: dict[str, dict[str, Any]] = {
    "leech": {"name": "leech", "shell": "leech", "n": 4096},  # here 3 GB
    "simvq": {"name": "simvq", "dim": 32, "codebook_size": K},
    "vq_cosine": {"name": "vq_cosine", "dim": 8, "codebook_size": K},
    "fvq": {"name": "fvq", "dim": 8, "codebook_size": K, "depth": 1},  # of two blocks, for the time
    "lfq": {"name": "lfq", "bits": 18},
    "bsq": {"name": "bsq", "bits": 18},
    "bsq, 36 bits": {"name": "bsq", "bits": 36},
    # those that soft assignment carries
    "lgq": {"name": "lgq", "dim": 8, "codebook_size": K},
    "lgq_paper": {"name": "lgq_paper", "dim": 8, "codebook_size": K},
    "ibq": {"name": "ibq", "dim": 8, "codebook_size": K},
    "softvq": {"name": "softvq", "dim": 8, "codebook_size": K},
    "nsvq": {"name": "nsvq", "dim": 8, "codebook_size": K},
    "vqwae": {"name": "vqwae", "dim": 8, "codebook_size": K, "iterations": 1},
}
SIZES = {"leech": [196_560], "bsq, 36 bits": [K, K]}
MOST_MB = 700  # of 4096


def peak_mb() -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def step(n: int = N, **options: Any) -> dict[str, Any]:
    """One step of training on n vectors, and what it took above what the process held before."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak_mb()
    torch.manual_seed(0)
    start = time.process_time()
    quantizer = build_quantizer(**options)
    assert isinstance(quantizer, Quantizer)
    z = torch.randn(n, quantizer.input_dim, requires_grad=True)
    optimizer = torch.optim.AdamW([z, *quantizer.parameters()], 1e-3)
    quantizer.anneal(0.0)
    out = quantizer(z)
    (out.codes * torch.randn_like(out.codes)).mean().add(sum(out.losses.values())).backward()
    optimizer.step()
    quantizer.anneal(0.1)
    with torch.no_grad():
        again = quantizer.eval()(z[:64])
        few = quantizer.dequantize(again.indices)
    return {
        "seconds": time.process_time() - start,
        "mb": peak_mb() - before,
        "sizes": quantizer.sizes,
        "used": out.indices.unique(dim=0).shape[0],
        "largest": out.indices.max().item(),
        "exact": torch.equal(few, again.codes),
        "finite": all(bool(parameter.isfinite().all()) for parameter in quantizer.parameters()),
        "gradient": bool(z.grad is not None and z.grad.isfinite().all() and z.grad.any()),
    }


@pytest.fixture(scope="module")
def measured():
    root = str(Path(__file__).parents[3])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize("case", CASES)
def test_a_step_at_the_stated_scale_fits(measured, case):
    result = measured[case]
    assert result["sizes"] == SIZES.get(case, [K])
    assert result["mb"] < MOST_MB
    assert result["exact"] and result["finite"] and result["gradient"]
    assert result["used"] > N / 4 and result["largest"] < max(result["sizes"])


if __name__ == "__main__":
    print(json.dumps({case: step(**options) for case, options in CASES.items()}))
