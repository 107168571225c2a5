"""The measurements of a benchmark as tasks: from what a command line orders to a result file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from eval.benchmark.bench import Bench
from eval.benchmark.config import BenchmarkConfig
from eval.benchmark.generation import generation
from eval.benchmark.plan import VERSIONS, Kind
from eval.benchmark.quality import quality
from eval.benchmark.yardstick import yardstick
from eval.config import EvalConfig
from eval.judge import Judge, training_data
from eval.parts import SAMPLING, Part, sampling_options
from eval.recording import Recorder
from pipeline.api import load_config, load_pipeline, load_tokenizer, prior_folder, tokenizer_folder, weights_sha256
from pipeline.core.errors import UserError
from pipeline.core.files import read_json

SHOWN = {"shown_images": 8, "shown_per_group": 1}  # on each job's sheets, at most: as many as the report lays side by side


@dataclass(frozen=True)
class Order:
    """What to measure: a run, by its kind; `job` is what the result says of it; `save_images`: a folder for all images."""

    kind: Kind
    run: Path
    out: Path
    config: BenchmarkConfig
    job: dict[str, Any]
    save_images: Path | None = None

    @property
    def eval_config(self) -> EvalConfig:
        """The evaluation's settings, with the benchmark's number of images and small sheets."""
        config = load_config(EvalConfig, self.config.eval, self.config.eval_settings)
        return replace(config, images=self.config.images, **{name: min(getattr(config, name), SHOWN[name]) for name in SHOWN})


@dataclass(frozen=True)
class Task:
    """A measurement that is ready: what decides its numbers beside the settings of all, and how it is made.

    `tokenizer`: the run whose images are the real ones.
    """

    part: str
    tokenizer: Path
    image_size: int
    inputs: dict[str, Any]
    run: Callable[[Bench, Path], Part]


def measure(order: Order, dry_run: bool = False) -> None:
    """Measure and write the result; one of the same inputs is left alone."""
    torch.set_flush_denormal(True)
    task = TASKS[order.kind](order)
    config, job = order.eval_config, {"kind": order.kind, **order.job}
    if dry_run:
        print(f"{order.kind} of {order.run} -> {order.out}\n{config}\n{json.dumps(task.inputs)}")
        return
    judge = Judge(training_data(task.tokenizer), task.image_size, config, "cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(judge, order.config, order.save_images)
    inputs = {"benchmark_version": VERSIONS[order.kind], "job": job, **task.inputs}
    Recorder(order.out.parent, judge).part(order.out.name, order.out.name, task.part, inputs, lambda out: task.run(bench, out))


def _quality(order: Order) -> Task:
    tokenizer = load_tokenizer(order.run)
    inputs = {
        "tokenizer_sha256": weights_sha256(tokenizer_folder(order.run)),
        "perturbations": list(order.config.perturbations),
    }
    run = lambda bench, out: quality(bench, tokenizer, order.run, out)  # noqa: E731
    return Task("tokenizer", order.run, tokenizer.spec.image_size[0], inputs, run)


def _generation(order: Order) -> Task:
    model = load_pipeline(order.run)
    identity = read_json(prior_folder(order.run) / "tokens.json")
    kind = SAMPLING[type(model.prior).__name__]
    prior = order.job.get("prior") or kind
    scales = order.config.guidance.get(prior)
    if not scales:
        raise UserError(f"config.guidance: no scales for {prior}; give a list, for example guidance.{prior}=[1,2,3]")
    if min(scales) <= 0:
        raise UserError(f"config.guidance.{prior}: a scale of {min(scales):g}; give scales above 0 (1: no guidance)")
    inputs = {
        "prior_sha256": weights_sha256(prior_folder(order.run)),
        "tokenizer_sha256": identity["tokenizer_sha256"],
        "sampling": asdict(sampling_options(model, order.eval_config, brought=False, guidance_scale=scales[0]))
        | {"guidance_scale": None},
        "guidance": list(scales),
        "curve_images": order.config.curve_images,
    }
    run = lambda bench, out: generation(bench, model, scales, order.run, out)  # noqa: E731
    return Task("generation", Path(identity["tokenizer"]), model.tokenizer.spec.image_size[0], inputs, run)


def _yardstick(order: Order) -> Task:
    size = load_tokenizer(order.run).spec.image_size[0]
    return Task("yardstick", order.run, size, {}, yardstick)


TASKS: dict[Kind, Callable[[Order], Task]] = {"quality": _quality, "generation": _generation, "yardstick": _yardstick}
