"""What soft assignment costs, side by side:  python -m benchmarks.soft_assignment

One training step's forward and backward pass of LGQ's published objective (`lgq_paper`) on N vectors of 64 channels, with
K codes, by these writings: `published`, plain PyTorch with the n x k matrices, as the public code's class has them; the
backends of `soft_assign`; beside them `nearest`, vector quantization by nearest neighbour (`vq`), and `product`, the one
matrix product of vectors and codes that all of them need, tile by tile. In the summary, `time_of_published`, `_nearest` and
`_product` are multiples of theirs; a writing of m such products reaches m / `time_of_product` of what the processor can do.
N is 4096, with 16,384 codes also 1024 and 16,384, on a GPU with 2^20 codes also 32,768; in older results always 4096.

Vectors and codes are drawn, not trained: Gaussian, of full rank or of rank 4 (LGQ's authors report an effective rank of 3.6
of trained latents), then layer-normed, so that |z|^2 = 64, which is what a tokenizer with `latent_norm` has. Codes are draws
of the same distribution. Each row says what that means: the median gap between the nearest and the second-nearest code
in units of tau, and how many codes an assignment has in effect, 1 / sum_k p^2. The schedule part goes through the temperatures
of a training: absolute ones, and those of `lgq`, t from 1 to 0.05 in units of the mean gap.

Every measurement is a process of its own: peak memory is the resident set's beyond its inputs (on a GPU, what PyTorch
allocated, once Triton has chosen its kernels), gradients included; time is the median of a few steps after a first one.
Repeats go round all cases, and the summary takes medians. Writes results/soft_assignment_DEVICE.json and .png, and goes on if
they exist. About 25 minutes a repeat on two cores that nobody else uses; `published` needs 7 GB at 65,536 codes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measuring import Memory, command_line, grouped, in_a_process, measured_by, opened, result_file
from benchmarks.soft_assignment_plot import VECTORS, draw
from pipeline.core.command import run_command
from pipeline.core.files import write_json
from stage1_tokenizer.quantizers.assignment.tiles import tile_sizes, tiles
from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.nearest import two_nearest
from stage1_tokenizer.quantizers.soft_assignment import soft_assign
from stage1_tokenizer.quantizers.usage import peak_penalty, usage_penalty
from stage1_tokenizer.quantizers.vq import VQ

CHANNELS = 64
CODES = (4096, 16384, 65536, 1 << 20)
MORE_VECTORS = {16384: (1024, 16384)}  # of codes: numbers of vectors beside VECTORS
MORE_ON_GPU = {1 << 20: (32768,)}
TEMPERATURES = (1.0, 0.1)
RANKS = (64, 4)
SCHEDULE = (16.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.05, 0.01)  # of tau, at 16384 codes
RELATIVE = (1.0, 0.47, 0.22, 0.11, 0.05)  # of t, at 0, 1/4, 1/2, 3/4 and 1 of a training
MOST_ENTRIES = {"published": 1 << 28, "dense": 1 << 26}  # that a writing with n x k matrices is asked for
PEAK, USAGE = 0.005, 0.005  # weights of the objective
SECONDS = 4.0  # of steps per measurement, at least two of them


def main() -> None:
    """Parse the command line, then measure what the result file lacks."""
    parser = command_line("soft_assignment", __doc__)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds over all cases (default: 3)")
    parser.add_argument("--codes", type=int, nargs="+", default=CODES, help=f"numbers of codes (default: {CODES})")
    parser.add_argument("--vectors", type=int, nargs="+", help="numbers of vectors, each with all codes (default: see below)")
    parser.add_argument("--out", type=Path, help="default: results/soft_assignment_DEVICE.json")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(Case(**arguments.case))))
        return
    out = arguments.out or result_file("soft_assignment", arguments.device)
    result = opened(out, arguments.device, threads=torch.get_num_threads())
    done = {key(row) for row in result["rows"]}
    for repeat in range(arguments.repeats):
        for case in cases(arguments.device, arguments.codes, arguments.vectors):
            row = {**asdict(case), "repeat": repeat}
            if key(row) in done:
                continue
            row |= in_a_process("benchmarks.soft_assignment", asdict(case))
            about = measured_by()
            result["rows"].append(row | {"code": about["code"]})
            result |= {"versions": about, "summary": summary(result["rows"])}
            write_json(out, result)
            print(describe(row), flush=True)
    draw(result, out.with_suffix(".png"))


@dataclass(frozen=True)
class Case:
    """One measurement."""

    part: str  # "sizes" or "schedule"
    writing: str
    vectors: int
    codes: int
    rank: int  # of the data
    temperature: float
    relative: bool  # the temperature is in units of the mean gap
    device: str


def cases(device: str, sizes: Iterable[int], vectors: Sequence[int] | None = None) -> Iterable[Case]:
    """All measurements of a round; without `vectors`, VECTORS of them with all sizes, then the other numbers with some."""
    writings = ["product", "nearest", "published", "dense", "streaming"] + (["triton"] if device != "cpu" else [])
    more = MORE_VECTORS if device == "cpu" else MORE_VECTORS | MORE_ON_GPU
    pairs = [(n, k) for n in vectors or [VECTORS] for k in sizes]
    pairs += [] if vectors else [(n, k) for k in sizes for n in more.get(k, ())]
    for (n, k), rank, temperature, writing in product(pairs, RANKS, TEMPERATURES, writings):
        again = temperature != TEMPERATURES[0] and writing in ("product", "nearest")  # which have none
        if not again and n * k <= MOST_ENTRIES.get(writing, n * k):
            yield Case("sizes", writing, n, k, rank, temperature, False, device)
    ours = "streaming" if device == "cpu" else "triton"
    for rank in RANKS:
        yield from (Case("schedule", ours, VECTORS, 16384, rank, tau, False, device) for tau in SCHEDULE)
        yield from (Case("schedule", ours, VECTORS, 16384, rank, t, True, device) for t in RELATIVE)


NAMES = ("part", "writing", "vectors", "codes", "rank", "temperature", "relative", "repeat")


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a measurement the same as another."""
    row = {"vectors": VECTORS, **row}
    return tuple(row[name] for name in NAMES)


def describe(row: dict[str, Any]) -> str:
    """A measurement in a line."""
    case = (
        f"{row['writing']:9s} N {row['vectors']:6d}  K {row['codes']:8d}  rank {row['rank']:2d}  tau {row['temperature']:5.2f}"
    )
    unit = "gaps" if row["relative"] else "    "
    return f"{case} {unit} {row['seconds']:8.3f} s {row['peak_mb']:7.0f} MB  {row['skipped']:8.3%} skipped"


def measure(case: Case) -> dict[str, Any]:
    """Seconds, CPU seconds and peak megabytes of a step, and what the assignment is like."""
    torch.set_flush_denormal(True)
    step, device = WRITINGS[case.writing], case.device
    z, codebook = data(case.vectors, case.codes, case.rank, device)
    near = two_nearest(z[:256], codebook)
    gaps = near[:, 1] - near[:, 0]
    tau = case.temperature * (gaps.mean().item() if case.relative else 1.0)
    cotangent = torch.randn(z.shape, generator=torch.Generator().manual_seed(2)).to(device) / z.numel()
    step(z[:64].detach().requires_grad_(), codebook[:64].detach().requires_grad_(), cotangent[:64], tau)  # loads libraries
    z.requires_grad_()
    codebook.requires_grad_()
    if device != "cpu":
        step(z, codebook, cotangent, tau)  # Triton tries its kernels at each number of codes, beside a buffer of 256 MB
    memory = Memory(device)
    first = step(z, codebook, cotangent, tau)
    used = memory.peak()
    seconds, processor = [], []
    while len(seconds) < 2 or (sum(seconds) < SECONDS and len(seconds) < 20):
        wall, cpu = time.perf_counter(), time.process_time()
        step(z, codebook, cotangent, tau)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - wall)
        processor.append(time.process_time() - cpu)
    return {
        "seconds": statistics.median(seconds),
        "cpu_seconds": statistics.median(processor),
        "steps": len(seconds),
        "peak_mb": used / 1e6,
        "process_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "tau": tau,
        "gap_over_tau": (gaps / tau).median().item(),
        "nearest_distance": near[:, 0].mean().item(),
        **first,
    }


def data(vectors: int, codes: int, rank: int, device: str) -> tuple[Tensor, Tensor]:
    """Layer-normed Gaussian vectors "n c" and codes "k c" of a rank."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.eye(CHANNELS) if rank == CHANNELS else torch.randn(rank, CHANNELS, generator=generator)
    points = [torch.randn(count, rank, generator=generator) @ mixing for count in (vectors, codes)]
    z, codebook = (F.layer_norm(part, (CHANNELS,)).to(device) for part in points)
    return z, codebook


def published(z: Tensor, codebook: Tensor, cotangent: Tensor, tau: float) -> dict[str, float]:
    """The objective as the public code's class writes it, with autograd."""
    distances = torch.cdist(z, codebook).square()
    p = torch.softmax(-distances / tau, 1)
    hard = codebook[p.argmax(1)]
    soft = p @ codebook
    q = soft + (hard - soft).detach()
    loss = F.mse_loss(q, z) + PEAK * torch.relu(1 - p.square().sum(1)).mean()
    loss = loss + USAGE * len(codebook) * p.mean(0).square().sum()
    return finish(loss, q, z, codebook, cotangent, 0.0, 1 / p.detach().square().sum(1).median())


def ours(backend: str) -> Callable[[Tensor, Tensor, Tensor, float], dict[str, float]]:
    """The objective by a backend of `soft_assign`, as `lgq_paper` writes it."""

    def step(z: Tensor, codebook: Tensor, cotangent: Tensor, tau: float) -> dict[str, float]:
        soft = soft_assign(z, codebook, tau, backend=backend)
        q = straight_through(soft.codes, F.embedding(soft.index, codebook))
        loss = F.mse_loss(q, z) + PEAK * peak_penalty(soft.purity) + USAGE * usage_penalty(soft.usage)
        return finish(loss, q, z, codebook, cotangent, soft.skipped.item(), 1 / soft.purity.detach().median())

    return step


def nearest(z: Tensor, codebook: Tensor, cotangent: Tensor, tau: float) -> dict[str, float]:
    """Vector quantization by nearest neighbour, with codebook and commitment losses."""
    quantizer = VQ(z.shape[1], 1)
    quantizer.codebook = torch.nn.Parameter(codebook.detach())
    out = quantizer(z)
    loss = torch.stack(list(out.losses.values())).sum()
    return finish(loss, out.codes, z, quantizer.codebook, cotangent, 0.0, torch.ones(()))


@torch.no_grad()
def one_product(z: Tensor, codebook: Tensor, cotangent: Tensor, tau: float) -> dict[str, float]:
    """z codebook^T, every tile over the last."""
    rows, columns = tile_sizes(len(z), len(codebook), z.device)
    work = z.new_empty(rows * columns)
    for part in tiles(slice(0, len(codebook)), columns):
        for tile in tiles(slice(0, len(z)), rows):
            here = work[: (tile.stop - tile.start) * (part.stop - part.start)].view(tile.stop - tile.start, -1)
            torch.mm(z[tile], codebook[part].T, out=here)
    return {"loss": 0.0, "gradient_norm": 0.0, "skipped": 0.0, "effective_codes": 0.0}


WRITINGS = {
    "product": one_product,
    "nearest": nearest,
    "published": published,
    "dense": ours("dense"),
    "streaming": ours("streaming"),
    "triton": ours("triton"),
}


def finish(
    loss: Tensor, q: Tensor, z: Tensor, codebook: Tensor, cotangent: Tensor, skipped: float, effective: Tensor
) -> dict[str, float]:
    """Backward, with a decoder's gradient; the numbers that must agree between writings."""
    gradients = torch.autograd.grad(loss + (q * cotangent).sum(), [z, codebook])
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
    return {"loss": loss.item(), "gradient_norm": norm, "skipped": skipped, "effective_codes": effective.item()}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the repeats, and ratios to the published writing, to nearest neighbours and to the product of that case."""
    medians = {}
    for name, group in grouped(rows, lambda row: key({**row, "repeat": 0})).items():
        fields = [field for field, value in group[0].items() if is_number(value) and field not in NAMES]
        numbers = {field: statistics.median(row[field] for row in group) for field in fields}
        medians[name] = {"vectors": VECTORS, **group[0], **numbers, "repeats": len(group)}
        del medians[name]["repeat"]
    for entry in medians.values():
        without = {"part": "sizes", "temperature": TEMPERATURES[0], "relative": False}  # of what has no temperature
        for other, same in (("published", {}), ("nearest", without), ("product", without)):
            against = medians.get(key({**entry, **same, "writing": other, "repeat": 0}))
            if against:
                entry[f"time_of_{other}"] = entry["seconds"] / against["seconds"]
                entry[f"memory_of_{other}"] = entry["peak_mb"] / max(against["peak_mb"], 1e-3)
        entry.pop("memory_of_product", None)  # which holds one tile of the result, at any size
    return list(medians.values())


def is_number(value: Any) -> bool:
    """Whether a median can be taken of it."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


if __name__ == "__main__":
    run_command(main)
