"""What a model costs: parameters, operations per image, and the training's time and memory where they were recorded."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.api import Tokenizer
from pipeline.core.config import read_yaml
from pipeline.core.run_folder import read_stats

SHOWN_RECORDS = 200  # of a training's statistics
TEMPERATURES = ("temperature", "t")  # what quantizers call the buffer that holds it


def flops_per_image(tokenizer: Tokenizer) -> int:
    """Floating-point operations of encoding, quantizing and decoding one image, on the tokenizer's own device.

    Those that PyTorch's counter knows, a multiplication and an addition as two: convolutions, matrix products, attention.
    """
    images = torch.zeros(1, 3, *tokenizer.spec.image_size, device=tokenizer.device)
    with FlopCounterMode(display=False) as counter:
        tokenizer.decode(tokenizer.encode(images))
    return counter.get_total_flops()


def training_cost(run: Path) -> dict[str, float | None]:
    """Seconds, milliseconds per step and peak memory (MB) of a training; None where its folder does not say.

    From `job/state.json`, which the benchmark's launcher writes: `seconds` of all attempts, loading and saving included, and so
    are the milliseconds, which stand for what a step costs in all; `peak_mb` where it was recorded.
    """
    try:
        state = json.loads((run / "job" / "state.json").read_text(encoding="utf-8"))
        config = read_yaml(run / "config.yaml")
    except FileNotFoundError:
        return {"train_seconds": None, "ms_per_step": None, "peak_mb": None}
    seconds = state.get("seconds")
    steps = config["images"] / config["batch_size"]
    return {
        "train_seconds": seconds,
        "ms_per_step": None if seconds is None else round(1000 * seconds / steps, 3),
        "peak_mb": state.get("peak_mb"),
    }


def training_course(run: Path, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """What a tokenizer's training logged, at most 200 records, evenly chosen, first and last among them; [] for no log.

    Two things are added where the quantizer has them. `temperature`: its schedule is a function of progress, so a copy is taken
    through it again. `purity`: the mean of what the logged penalty, weight * (1 - purity), was made of.
    """
    records = read_stats(run)
    if not records:
        return []
    quantizer = copy.deepcopy(tokenizer.quantizer)
    weight = tokenizer.config["quantizer_config"].get("peak_weight")
    course = []
    for i in torch.linspace(0, len(records) - 1, min(len(records), SHOWN_RECORDS)).round().long().tolist():
        record = {name: _rounded(value) for name, value in records[i].items()}
        quantizer.anneal(min(1.0, record["images"] / records[-1]["images"]))
        for name, value in quantizer.named_buffers():
            if name.rpartition(".")[2] in TEMPERATURES and value.numel() == 1:
                record.setdefault("temperature", _rounded(value.item()))
        if weight and "quantizer/peak" in record:
            record["purity"] = _rounded(1 - records[i]["quantizer/peak"] / weight)
        course.append(record)
    return course


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def parameters(module: nn.Module) -> int:
    """How many parameters a module has."""
    return sum(parameter.numel() for parameter in module.parameters())
