"""What a model costs: parameters, operations per image, and the training's time and memory where they were recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.api import Tokenizer
from pipeline.core.config import read_yaml
from pipeline.core.run_folder import read_stats

SHOWN_RECORDS = 200  # of a training's statistics


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


def training_course(run: Path) -> list[dict[str, Any]]:
    """What the training logged, at most 200 records, evenly chosen, the last one among them; [] where it logged nothing."""
    records = read_stats(run)
    if not records:
        return []
    chosen = torch.linspace(0, len(records) - 1, min(len(records), SHOWN_RECORDS)).round().long().tolist()
    return [{name: _rounded(value) for name, value in records[i].items()} for i in chosen]


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
