"""Which sampling options serve the demo's priors best:  python -m benchmarks.sampling_sweep

Samples from finished priors, one option at a time changed from the options of configs/eval/demo.yaml, and measures what the
evaluation measures: same labels, same seeds, same reference. Writes results/sampling_sweep.json, and goes on if it exists.
With the same seeds everywhere, the error of a difference is smaller than the errors of its two sides suggest.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch

from eval.config import EvalConfig
from eval.features import extract
from eval.judge import Judge
from eval.measures import set_metrics
from eval.parts import SAMPLING
from pipeline.api import (
    ImageGenerator,
    load_data,
    load_pipeline,
    load_tokenizer,
    prior_folder,
    tokenizer_folder,
    weights_sha256,
)
from pipeline.core.command import run_command
from pipeline.core.config import load_config
from pipeline.core.files import read_json, write_json
from pipeline.core.run_folder import versions

AXES: dict[str, dict[str, list[Any]]] = {
    "maskgit": {
        "order": ["confidence", "halton", "random", "entropy"],
        "steps": [4, 8, 12, 16, 32],
        "guidance_scale": [1.0, 1.5, 2.0, 3.0, 4.0],
        "guidance_schedule": ["constant", "linear", "power_cosine"],
        "temperature": [0.8, 0.9, 1.0, 1.1],
        "choice_temperature": [1.0, 4.5, 9.0],
    },
    "ar": {
        "guidance_scale": [1.0, 1.5, 2.0, 3.0],
        "guidance_schedule": ["constant", "linear", "power_cosine"],
        "temperature": [0.9, 1.0, 1.1],
        "top_k": [None, 128, 512],
        "top_p": [None, 0.9, 0.97],
    },
}
SHOWN = ("fd", "kid", "is", "precision", "recall", "group_accuracy")


def main() -> None:
    """Parse the command line, then measure what the result file lacks."""
    parser = argparse.ArgumentParser(description="Sweep the sampling options of the demo's priors, one at a time.")
    parser.add_argument("--tokenizer", type=Path, default=Path("runs/demo/tokenizer"))
    parser.add_argument("--priors", type=Path, nargs="+", default=[Path("runs/demo/maskgit"), Path("runs/demo/ar")])
    parser.add_argument("--config", default="configs/eval/demo.yaml", help="the options to start from")
    parser.add_argument("--out", type=Path, default=Path("results/sampling_sweep.json"))
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings on top, e.g. maskgit.order=halton")
    arguments = parser.parse_intermixed_args()
    torch.set_flush_denormal(True)
    tokenizer, config = arguments.tokenizer, load_config(EvalConfig, arguments.config, arguments.settings)
    data = load_data(**read_json(tokenizer_folder(tokenizer) / "training.json")["data"])
    judge = Judge(data, load_tokenizer(tokenizer).spec.image_size[0], config, "cpu")
    result: dict[str, Any] = read_json(arguments.out) if arguments.out.exists() else {"rows": []}
    for path in arguments.priors:
        model = load_pipeline(path)
        kind = SAMPLING[type(model.prior).__name__]
        base = dataclasses.asdict(model.options(**dataclasses.asdict(getattr(config, kind))))
        hashes = {"prior": weights_sha256(prior_folder(path)), "tokenizer": weights_sha256(tokenizer_folder(tokenizer))}
        for changes in [{}, *({name: value} for name, values in AXES[kind].items() for value in values if value != base[name])]:
            inputs = {"prior": kind, "options": base | changes, "images": config.images, "seed": config.seed, "sha256": hashes}
            inputs = json.loads(json.dumps(inputs))  # as they will be read: lists for tuples
            if inputs in [row["inputs"] for row in result["rows"]]:
                continue
            row = measure(judge, model, base | changes)
            result["rows"].append({"changes": changes, **row, "inputs": inputs})
            result |= {"reference": judge.reference.describe(), "versions": versions()}
            write_json(arguments.out, result)
            shown = "  ".join(f"{name} {row[name][0]:.3g} ± {row[name][1] or 0:.2g}" for name in SHOWN)
            print(f"{kind:8s} {changes or 'base'!s:32s} {shown}  {row['images_per_second']} img/s", flush=True)


@torch.no_grad()
def measure(judge: Judge, model: ImageGenerator, options: dict[str, Any]) -> dict[str, Any]:
    """Value and standard error of every metric of samples with these options, and images per second of sampling alone."""
    labels = judge.sample_labels()
    first = 1_000_000 * (judge.config.seed + 1)  # the seeds of an evaluation
    clock = time.monotonic()
    batches = list(
        model.batches(labels.tolist(), range(first, first + len(labels)), model.options(**options), judge.config.batch_size)
    )
    seconds = time.monotonic() - clock
    found = extract(batches, judge.extractor, len(labels), "features of samples")
    metrics = set_metrics(found, labels, judge.reference, judge.probes, judge.extractor, judge.config.kid_subsets)
    values = {name: [metric.value, metric.standard_error] for name, metric in metrics.items()}
    return values | {"images_per_second": round(len(labels) / seconds, 1)}


if __name__ == "__main__":
    run_command(main)
