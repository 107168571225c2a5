"""Which sampling options serve the demo's priors best:  python -m benchmarks.sampling_sweep

Samples from finished priors, one option at a time changed from those that the prior brings (`prior.sampling`; settings on top,
maskgit.steps=16, replace them), and measures what the evaluation measures, but by default with other labels, seeds and
reference images (seed=1), so that the evaluation is no judge of what was chosen to please it. Writes
results/sampling_sweep.json, and goes on if it exists. Each row names its reference and the images that its prior was trained
for; the file's own `reference` is that of its last rows without. With the same seeds in all rows, the error of a difference is
smaller than the errors of its two sides suggest.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import command_line, measured_by
from eval.config import EvalConfig
from eval.features import extract
from eval.judge import Judge
from eval.measures import set_metrics
from eval.parts import SAMPLING
from pipeline.api import (
    ImageGenerator,
    load_data,
    load_pipeline,
    load_prior,
    load_tokenizer,
    prior_folder,
    tokenizer_folder,
    weights_sha256,
)
from pipeline.core.command import run_command
from pipeline.core.config import load_config
from pipeline.core.files import read_json, write_json
from stage2_prior.sampling import make_options

AXES: dict[str, dict[str, list[Any]]] = {  # kind of prior -> option -> its values, or what changes together
    "maskgit": {
        "order": ["confidence", "halton", "random", "entropy", "maxprob"],
        "steps": [4, 8, 12, 16, 32],
        "schedule": ["arccos", "cosine", "linear"],
        "guidance_scale": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
        "guidance_schedule": ["constant", "linear", "power_cosine"],
        "temperature": [0.8, 0.9, 1.0, 1.1],
        "final_temperature": [0.8, 1.2],
        "guidance_interval": [[0.0, 0.5], [0.5, 1.0], [0.1, 0.9]],
        "corrector": [{"corrector_steps": steps, "corrector": kind} for kind in ("confidence", "random") for steps in (2, 4)],
        "confidence": [{"order": "confidence", "choice_temperature": value} for value in (1.0, 9.0)],
        "cosine": [{"schedule": "cosine"} | more for more in ({"guidance_scale": 4.0}, {"steps": 12}, {"temperature": 0.9})],
    },
    "ar": {
        "guidance_scale": [1.0, 1.5, 2.0, 2.5, 3.0, 4.0],
        "guidance_schedule": ["constant", "linear", "power_cosine"],
        "temperature": [0.9, 1.0, 1.1],
        "final_temperature": [0.8, 1.2],
        "guidance_interval": [[0.0, 0.5], [0.5, 1.0], [0.1, 0.9]],
        "top_k": [None, 128, 512],
        "top_p": [None, 0.9, 0.97],
    },
}
TOKENIZER, PRIORS = Path("runs/demo/tokenizer"), [Path("runs/demo/maskgit"), Path("runs/demo/ar")]
CONFIG, OUT = "configs/eval/demo.yaml", Path("results/sampling_sweep.json")
SHOWN = ("fd", "kid", "is", "precision", "recall", "group_accuracy")


def main() -> None:
    """Parse the command line, then measure what the result file lacks."""
    parser = command_line("sampling_sweep", __doc__)
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help=f"of the priors (default: {TOKENIZER})")
    parser.add_argument("--priors", type=Path, nargs="+", default=PRIORS, help="runs (default: the demo's two)")
    parser.add_argument("--config", default=CONFIG, help=f"images and measures (default: {CONFIG})")
    parser.add_argument("--out", type=Path, default=OUT, help=f"default: {OUT}")
    every = sorted({name for axes in AXES.values() for name in axes})
    some = f"only these of {', '.join(every)} (default: all)"
    parser.add_argument("--axes", nargs="+", default=every, choices=every, metavar="AXIS", help=some)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings on top, e.g. maskgit.order=halton")
    arguments = parser.parse_intermixed_args()
    torch.set_flush_denormal(True)
    judge = build_judge(arguments.tokenizer, load_config(EvalConfig, arguments.config, ["seed=1", *arguments.settings]))
    for path in arguments.priors:
        axes = AXES[SAMPLING[type(load_prior(path)).__name__]]
        values = [(name, value) for name, values in axes.items() if name in arguments.axes for value in values]
        plans = [{}, *(value if isinstance(value, dict) else {name: value} for name, value in values)]
        measure_all(judge, arguments.tokenizer, path, plans, arguments.out)


def build_judge(tokenizer: Path, config: EvalConfig) -> Judge:
    """What measures samples of priors on this tokenizer's tokens, against the images that it was trained on."""
    data = load_data(**read_json(tokenizer_folder(tokenizer) / "training.json")["data"])
    return Judge(data, load_tokenizer(tokenizer).spec.image_size[0], config, "cpu")


def measure_all(judge: Judge, tokenizer: Path, run: Path, plans: Sequence[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """The rows of a prior with the judge's options, changed as each plan says; measured where the file has them not."""
    result: dict[str, Any] = read_json(out) if out.exists() else {"rows": []}
    model, config, rows = load_pipeline(run), judge.config, []
    kind, base = SAMPLING[type(model.prior).__name__], base_options(model, config)
    about = {"reference": judge.reference.describe(), "training_images": training_images(run)}
    hashes = {"prior": weights_sha256(prior_folder(run)), "tokenizer": weights_sha256(tokenizer_folder(tokenizer))}
    for changes in plans:
        inputs = {"prior": kind, "options": base | changes, "images": config.images, "seed": config.seed, "sha256": hashes}
        inputs = json.loads(json.dumps(inputs))  # as they will be read: lists for tuples
        row = next((row for row in result["rows"] if row["inputs"] == inputs), None)
        if row is None:
            result["versions"] = measured_by()
            row = {"changes": changes, **measure(judge, model, base | changes), "inputs": inputs, **about}
            row["code"] = result["versions"]["code"]
            result["rows"].append(row)
            write_json(out, result)
            shown = "  ".join(f"{name} {row[name][0]:.3g} ± {row[name][1] or 0:.2g}" for name in SHOWN)
            print(f"{kind:8s} {changes or 'base'!s:32s} {shown}  {row['images_per_second']} img/s", flush=True)
        rows.append(row)
    return rows


def base_options(model: ImageGenerator, config: EvalConfig) -> dict[str, Any]:
    """The sampling options that an evaluation would take: those that the prior brings, under those of the configuration."""
    given = getattr(config, SAMPLING[type(model.prior).__name__])
    return dataclasses.asdict(model.options(**dataclasses.asdict(given)))


def training_images(run: Path) -> int | None:
    """For how many images a run trained its prior; None where that did not come with it."""
    file = prior_folder(run) / "training.json"
    return read_json(file)["config"]["images"] if file.exists() else None


@torch.no_grad()
def measure(judge: Judge, model: ImageGenerator, options: dict[str, Any]) -> dict[str, Any]:
    """Value and standard error of every metric of samples with these options, and images per second of sampling alone."""
    labels = judge.sample_labels()
    first = 1_000_000 * (judge.config.seed + 1)  # the seeds of an evaluation
    clock = time.monotonic()
    seeds, sampling = range(first, first + len(labels)), make_options(model.prior.options_type, options)
    batches = list(model.batches(labels.tolist(), seeds, sampling, judge.config.batch_size))
    seconds = time.monotonic() - clock
    found = extract(batches, judge.extractor, len(labels), "features of samples")
    metrics = set_metrics(found, labels, judge.reference, judge.probes, judge.extractor, judge.config.kid_subsets)
    values = {name: [metric.value, metric.standard_error] for name, metric in metrics.items()}
    return values | {"images_per_second": round(len(labels) / seconds, 1)}


if __name__ == "__main__":
    run_command(main)
