"""What a prior's vocabulary costs:  python -m benchmarks.large_vocabulary

A MaskGIT of size nano on 16 x 16 random tokens of K codes, for every head, trained and sampled in two writings: plain (the
logits of all masked positions exist at once) and chunked (ours). Training is also measured with torch's own
linear_cross_entropy where that is there. Each measurement is a process of its own; the rounds are interleaved and the medians
taken. Seconds are the processor's on a CPU, so that other work on the machine counts little, and the clock's elsewhere.
Memory is the peak beyond what lies there before: weights, moments, tokens. Writes results/large_vocabulary_DEVICE.json, and
goes on if it exists. results/large_vocabulary_cpu.json is older: medians only, of a processor that it does not name.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measuring import Memory, command_line, grouped, in_a_process, measured_by, opened, result_file
from pipeline.core.command import run_command
from pipeline.core.files import write_json
from stage2_prior import cross_entropy, heads
from stage2_prior.maskgit import MaskGITPrior
from stage2_prior.sampling import MaskGITSampling
from stage2_prior.training import parameter_groups

GRID, CODE_CHANNELS, CLASSES = 16, 16, 10
CODES = (16_384, 65_536, 262_144)
SMOOTHING = 0.1
TORCH_UP_TO = 65_536  # codes: beyond, torch's own takes minutes a step on a CPU
WHAT = (
    "rows: processes; summary: medians over them; seconds of the processor (of the clock on a GPU); "
    "megabytes at the peak beyond what lay there before (weights, moments, tokens)"
)


def plain(features: Tensor, vectors: Tensor, bias: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """All logits at once."""
    logits = F.linear(features, vectors, bias)
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="sum")


def torch_chunked(features: Tensor, vectors: Tensor, bias: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """torch's own, which does not smooth while it chunks: that is added by the identity."""
    options = getattr(nn, "LinearCrossEntropyOptions")()  # noqa: B009  (not in every torch that we run on)
    loss = getattr(F, "linear_cross_entropy")(  # noqa: B009
        features, vectors, targets, linear_bias=bias, reduction="sum", options=options
    )
    distance = (features * (vectors[targets] - vectors.mean(0))).sum() + (bias[targets] - bias.mean()).sum()
    return loss + label_smoothing * distance


WRITINGS: dict[str, Callable[..., Tensor]] = {
    "plain": plain,
    "chunked": cross_entropy.linear_cross_entropy,
    "torch": torch_chunked,
}


def main() -> None:
    """Parse the command line, then measure everything, or one case as a child."""
    parser = command_line("large_vocabulary", __doc__)
    parser.add_argument("--codes", type=int, nargs="+", default=CODES, help=f"sizes of the vocabulary (default: {CODES})")
    parser.add_argument("--heads", nargs="+", choices=heads.HEADS, default=list(heads.HEADS), help="default: every head")
    parser.add_argument("--images", type=int, default=4, help="in a training step (default: 4)")
    parser.add_argument("--samples", type=int, default=2, help="images sampled together (default: 2)")
    parser.add_argument("--steps", type=int, default=2, help="timed training steps of a process (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each case (default: 3)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU (default: 1)")
    parser.add_argument("--out", type=Path, help="default: results/large_vocabulary_DEVICE.json")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(json.loads(arguments.case))))
        return
    measure_all(arguments)


def measure_all(arguments: argparse.Namespace) -> None:
    """The rows that the result file lacks, round by round, with the medians over the rounds."""
    if arguments.device == "cpu":
        torch.set_num_threads(arguments.threads)  # which are part of the device's name
    out = arguments.out or result_file("large_vocabulary", arguments.device)
    writings = [name for name in WRITINGS if name != "torch" or hasattr(F, "linear_cross_entropy")]
    common = {name: getattr(arguments, name) for name in ("images", "samples", "steps", "device", "threads")}
    settings = common | {"grid": GRID, "code_channels": CODE_CHANNELS, "size": "nano"}
    result: dict[str, Any] = {"what": WHAT} | opened(out, arguments.device, settings=settings)
    done = {key(row) for row in result["rows"]}
    for number, codes, head, writing in product(range(arguments.rounds), arguments.codes, arguments.heads, writings):
        case: dict[str, Any] = {"codes": codes, "head": head, "writing": writing}
        if key(case | {"round": number}) in done or (case["codes"] > TORCH_UP_TO and writing == "torch"):
            continue
        found = in_a_process("benchmarks.large_vocabulary", case | common)
        result["rows"].append({**case, "round": number, **found})
        result |= {"versions": measured_by(), "summary": summary(result["rows"])}
        write_json(out, result)
        print(f"{len(result['rows']):3d} rows  K = {codes:7,d}  {head:9s}  {writing:8s}  {found}", flush=True)
    for row in result.get("summary", []):
        print(row)


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a measurement the same as another."""
    return tuple(row[name] for name in ("codes", "head", "writing", "round"))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the rounds of each case; a number that a case has not stays away."""
    entries = []
    for (codes, head, writing, _), found in grouped(rows, lambda row: key(row | {"round": 0})).items():
        names = [name for name in found[0] if name not in ("codes", "head", "writing", "round")]
        medians = {name: round(statistics.median(row[name] for row in found), 4) for name in names}
        entries.append({"codes": codes, "head": head, "writing": writing, "rounds": len(found), **medians})
    return entries


def measure(case: dict[str, Any]) -> dict[str, float]:
    """One case: seconds and megabytes of a training step and of sampling."""
    torch.set_num_threads(case["threads"])
    torch.manual_seed(0)
    device, codes = torch.device(case["device"]), case["codes"]
    if case["writing"] == "plain":
        cross_entropy.HELD["cpu"] = cross_entropy.HELD_ELSEWHERE = 1 << 62  # sampling: all positions together
    heads.linear_cross_entropy = WRITINGS[case["writing"]]
    prior = MaskGITPrior(
        sizes=[codes],
        scales=[[GRID, GRID]],
        image_size=[8 * GRID, 8 * GRID],
        num_classes=CLASSES,
        label_smoothing=SMOOTHING,
        dropout=0.0,
        head=case["head"],
        code_dims=[CODE_CHANNELS],
    )
    prior.codes.start([torch.randn(codes, CODE_CHANNELS)])
    prior.to(device).train()  # pyright: ignore[reportArgumentType]
    optimizer = torch.optim.AdamW(parameter_groups(prior, 0.03), 1e-4, fused=True)
    for parameter in prior.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # the moments exist from here on
    optimizer.zero_grad()
    tokens = torch.randint(codes, (case["images"], GRID**2, 1), device=device)
    labels = torch.arange(case["images"], device=device) % CLASSES
    noise = prior.draw_noise(case["images"], torch.Generator().manual_seed(0))
    noise = {name: draws.to(device) for name, draws in noise.items()}

    def step() -> None:
        (prior(tokens, labels, noise) / prior.loss_count(noise)).backward()
        optimizer.step()
        optimizer.zero_grad()

    def sample() -> None:
        options = MaskGITSampling(steps=8, guidance_scale=2.0)
        prior.sample(range(case["samples"]), options, range(case["samples"]))

    result = {"parameters": float(sum(parameter.numel() for parameter in prior.parameters()))}
    result["step_megabytes"] = peak(step, device)
    result["step_seconds"] = statistics.median(seconds(step, device) for _ in range(case["steps"]))
    if case["writing"] != "torch":  # it has no part in sampling
        prior.eval()
        result["sampling_megabytes"] = peak(sample, device)
        result["sampling_seconds_per_image"] = seconds(sample, device) / case["samples"]
    return result


def peak(work: Callable[[], None], device: torch.device) -> float:
    """Megabytes that this takes, at its height, beyond what is held before."""
    gc.collect()
    memory = Memory(device)
    work()
    return memory.peak() / 1e6


def seconds(work: Callable[[], None], device: torch.device) -> float:
    """How long it takes."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    work()
    if device.type != "cpu":
        torch.cuda.synchronize(device)
    return clock() - start


if __name__ == "__main__":
    run_command(main)
