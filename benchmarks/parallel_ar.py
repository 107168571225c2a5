"""What several tokens a step gain an autoregressive prior, and cost it in quality:  python -m benchmarks.parallel_ar

The prior of configs/stage2/ar_parallel_demo.yaml, which learnt random orders, draws 1, 2, 4, 8 and 16 tokens a step, in an
order that fills the picture evenly and in a random one; beside it that of configs/stage2/ar_demo.yaml, which learnt the raster
order only, token after token. Same labels, seeds and reference, those of configs/eval/demo.yaml, and the guidance that both
priors bring, which is the same in their configurations. The summary has of each number of tokens how far the distances (gFD,
KID) are beyond the plain prior's, with an error that takes the two sides for independent, and how many times as fast an image
is there, with these very weights and options, one at a time and as many together as the evaluation samples (batch_size):
`times_plain` beside one token a pass, `times_ahead` beside the lookahead that pays for so many images, whose samples are the
plain ones. Time is the clock's, of tokens and pixels, the median of five rounds over all cases in one process; it is taken in
the even order, and counts for both. Writes results/parallel_ar.json, and goes on if it exists; another device measures its
speeds anew, beside the others'. One training of each prior: what a seed of it does is not in the errors.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import command_line, device_name, measured_by
from benchmarks.prior_summary import advised
from benchmarks.sampling_sweep import CONFIG, TOKENIZER, base_options, build_judge, measure_all
from eval.config import EvalConfig
from pipeline.api import ImageGenerator, load_pipeline, load_prior, prior_folder, weights_sha256
from pipeline.core.command import run_command
from pipeline.core.config import load_config
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from stage2_prior.autoregressive import AutoregressivePrior
from stage2_prior.sampling import make_options

AT_ONCE = (1, 2, 4, 8, 16)  # tokens a step
ORDERS = ("halton", "random")
ROUNDS = 5  # of the clock
PLAIN, PARALLEL, OUT = Path("runs/demo/ar"), Path("runs/demo/ar_parallel"), Path("results/parallel_ar.json")


def main() -> None:
    """Parse the command line, then measure what the result file lacks."""
    parser = command_line("parallel_ar", __doc__)
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help=f"of both priors (default: {TOKENIZER})")
    parser.add_argument("--plain", type=Path, default=PLAIN, help=f"an AR prior in raster order (default: {PLAIN})")
    parser.add_argument("--parallel", type=Path, default=PARALLEL, help=f"one that learnt random orders (default: {PARALLEL})")
    parser.add_argument("--config", default=CONFIG, help=f"images and measures (default: {CONFIG})")
    parser.add_argument("--out", type=Path, default=OUT, help=f"default: {OUT}")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings on top, e.g. ar.guidance_scale=2")
    arguments = parser.parse_intermixed_args()
    torch.set_flush_denormal(True)
    tokens = tokens_of(arguments.parallel)
    config = load_config(EvalConfig, arguments.config, arguments.settings)
    judge = build_judge(arguments.tokenizer, config)
    (plain,) = measure_all(judge, arguments.tokenizer, arguments.plain, [{}], arguments.out)
    plans = [plan(order, tokens, n) for order in ORDERS for n in AT_ONCE]
    rows = measure_all(judge, arguments.tokenizer, arguments.parallel, plans, arguments.out)
    speeds = measure_speeds(arguments.plain, arguments.parallel, config, arguments.out)
    beyond = [loss(row, plain, n) | {"speed": faster(speeds, n)} for row, n in zip(rows, AT_ONCE * len(ORDERS), strict=True)]
    write_json(arguments.out, read_json(arguments.out) | {"summary": beyond})
    for entry in beyond:
        print(describe(entry))


def plan(order: str, tokens: int, at_once: int) -> dict[str, Any]:
    """The options of so many tokens a step."""
    return {"order": order, "steps": -(-tokens // at_once), "schedule": "linear"}


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


@dataclass(frozen=True)
class Timed:
    """A way to sample so many images together."""

    model: ImageGenerator
    options: Any
    batch: int
    said: dict[str, Any]  # by its entry, which is known by it

    def seconds(self) -> float:
        """Of an image: its tokens and its pixels."""
        labels = [number % self.model.prior.config["num_classes"] for number in range(self.batch)]
        start = time.perf_counter()
        for _ in self.model.batches(labels, range(self.batch), self.options, self.batch):
            pass
        return (time.perf_counter() - start) / self.batch


def measure_speeds(plain: Path, parallel: Path, config: EvalConfig, out: Path) -> list[dict[str, Any]]:
    """Seconds of an image by both priors; those of `out` that are of these weights, options and this device are kept."""
    cases = [case for run, at_once in ((plain, ()), (parallel, AT_ONCE)) for case in timed(run, at_once, config)]
    result = read_json(out)
    known = {json.dumps(entry["inputs"]): entry for entry in result.get("speeds", [])}
    new = [case for case in cases if json.dumps(case.said) not in known]
    found: list[list[float]] = [[] for _ in new]
    for number in range(ROUNDS + 1):
        for case, seconds in zip(new, found, strict=True):
            taken = case.seconds()
            seconds.extend([taken] if number else [])  # the first loads libraries and fills caches
    code = measured_by()["code"]
    for case, seconds in zip(new, found, strict=True):
        spread = {"seconds_per_image": statistics.median(seconds), "fastest": min(seconds), "slowest": max(seconds)}
        known[json.dumps(case.said)] = {"inputs": case.said, **spread, "code": code}
    write_json(out, result | {"speeds": list(known.values())})
    return [known[json.dumps(case.said)] for case in cases]


def timed(run: Path, at_once: tuple[int, ...], config: EvalConfig) -> list[Timed]:
    """The cases of a prior: so many tokens a step, or, without such numbers, one a pass and the lookahead that pays."""
    model, cases = load_pipeline(run), []
    base, sha256 = base_options(model, config), weights_sha256(prior_folder(run))
    for batch in dict.fromkeys((1, config.batch_size)):
        ways = [{"tokens_per_step": n} | plan(ORDERS[0], model.prior.spec.t, n) for n in at_once]
        ways = ways or [{"lookahead": places} for places in dict.fromkeys((1, advised(batch)))]
        for changes in ways:
            options = {k: v for k, v in changes.items() if k != "tokens_per_step"}
            options = make_options(model.prior.options_type, base | options)
            said = {"batch": batch, **changes, "options": base, "sha256": sha256, "device": device_name("cpu")}
            cases.append(Timed(model, options, batch, json.loads(json.dumps(said))))
    return cases


def faster(speeds: list[dict[str, Any]], at_once: int) -> list[dict[str, Any]]:
    """Of so many tokens a step, for each number of images: seconds of one, and how many times as fast as the plain prior."""
    entries = []
    for mine in speeds:
        if mine["inputs"].get("tokens_per_step") != at_once:
            continue
        batch, seconds = mine["inputs"]["batch"], mine["seconds_per_image"]
        entry = {"batch": batch, "seconds_per_image": seconds}
        for other in speeds:
            lookahead = other["inputs"].get("lookahead")
            if other["inputs"]["batch"] == batch and lookahead is not None:
                times = other["seconds_per_image"] / seconds
                entry |= {"times_plain": times} if lookahead == 1 else {"lookahead": lookahead, "times_ahead": times}
        entries.append(entry)
    return entries


def describe(entry: dict[str, Any]) -> str:
    """An entry of the summary in a line."""
    shown = [f"{name} {entry[name][0]:+.3g} ± {entry[name][1]:.2g}" for name in ("fd", "kid")]
    for speed in entry["speed"]:
        ahead = f" ({speed['times_ahead']:.2g} with lookahead {speed['lookahead']})" if "times_ahead" in speed else ""
        shown.append(f"{speed['times_plain']:.2g} times as fast{ahead} by {speed['batch']}")
    return f"{entry['order']:8s} {entry['tokens_per_step']:2d} tokens a step, beside plain: {'  '.join(shown)}"


if __name__ == "__main__":
    run_command(main)
