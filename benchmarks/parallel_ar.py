"""What several tokens a step cost an autoregressive prior in quality:  python -m benchmarks.parallel_ar

The prior of configs/stage2/ar_parallel_demo.yaml, which learnt random orders, draws 1, 2, 4 and 8 tokens a step, in an order
that fills the picture evenly and in a random one; beside it that of configs/stage2/ar_demo.yaml, which learnt the raster order
only, token after token. Same labels, seeds and reference, those of configs/eval/demo.yaml, and the guidance that both priors
bring, which is the same in their configurations. What the summary adds is each distance (gFD, KID) beyond the plain prior's,
whose error takes the two sides for independent. Writes results/parallel_ar.json, and goes on if it exists. One training of
each prior: what a seed of it does is not in the errors.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from benchmarks.sampling_sweep import build_judge, measure_all
from eval.config import EvalConfig
from pipeline.api import load_prior
from pipeline.core.command import run_command
from pipeline.core.config import load_config
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from stage2_prior.autoregressive import AutoregressivePrior

AT_ONCE = (1, 2, 4, 8)  # tokens a step
ORDERS = ("halton", "random")


def main() -> None:
    """Parse the command line, then measure what the result file lacks."""
    parser = argparse.ArgumentParser(description="Several tokens a step beside one after the other: distances with errors.")
    parser.add_argument("--tokenizer", type=Path, default=Path("runs/demo/tokenizer"))
    parser.add_argument("--plain", type=Path, default=Path("runs/demo/ar"), help="an AR prior in raster order")
    parser.add_argument("--parallel", type=Path, default=Path("runs/demo/ar_parallel"), help="one that learnt random orders")
    parser.add_argument("--config", default="configs/eval/demo.yaml", help="images and measures")
    parser.add_argument("--out", type=Path, default=Path("results/parallel_ar.json"))
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings on top, e.g. ar.guidance_scale=2")
    arguments = parser.parse_intermixed_args()
    torch.set_flush_denormal(True)
    tokens = tokens_of(arguments.parallel)
    judge = build_judge(arguments.tokenizer, load_config(EvalConfig, arguments.config, arguments.settings))
    (plain,) = measure_all(judge, arguments.tokenizer, arguments.plain, [{}], arguments.out)
    plans = [{"order": order, "steps": -(-tokens // n), "schedule": "linear"} for order in ORDERS for n in AT_ONCE]
    rows = measure_all(judge, arguments.tokenizer, arguments.parallel, plans, arguments.out)
    beyond = [loss(row, plain, n) for row, n in zip(rows, AT_ONCE * len(ORDERS), strict=True)]
    write_json(arguments.out, read_json(arguments.out) | {"summary": beyond})
    for entry in beyond:
        shown = "  ".join(f"{name} {entry[name][0]:+.3g} ± {entry[name][1]:.2g}" for name in ("fd", "kid"))
        print(f"{entry['order']:8s} {entry['tokens_per_step']} tokens a step, beyond plain: {shown}")


def tokens_of(run: Path) -> int:
    """Tokens of an image; UserError where the prior did not learn random orders to the end."""
    prior = load_prior(run)
    if not isinstance(prior, AutoregressivePrior) or not prior.any_order:
        raise UserError(f"--parallel {run}: has not learnt random orders; train configs/stage2/ar_parallel_demo.yaml")
    return prior.spec.t


def loss(row: dict[str, Any], plain: dict[str, Any], at_once: int) -> dict[str, Any]:
    """How much farther than the plain prior's samples these are, with standard errors."""
    found: dict[str, Any] = {"order": row["changes"]["order"], "tokens_per_step": at_once}
    for name in ("fd", "kid"):
        (value, error), (other, other_error) = row[name], plain[name]
        found[name] = [value - other, math.hypot(error, other_error)]
    return found


if __name__ == "__main__":
    run_command(main)
