"""What each repair of LGQ is worth on the built-in images:  python -m benchmarks.lgq_ablation

Trains the demo's tokenizer, shortened, once per variant: LGQ, LGQ with one repair taken back, the published LGQ, and the
other quantizers; same data order, seed, steps and backbone. Writes results/lgq_ablation.json, and goes on if it exists.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch

from eval.metrics import psnr
from pipeline.api import load_tokenizer
from pipeline.core.code_usage import code_usage
from pipeline.core.command import run_command
from pipeline.core.config import load_config
from pipeline.core.data.images import OrderedImages, ordered_batches
from pipeline.core.data.sources import load_data
from pipeline.core.files import read_json, write_json
from pipeline.core.run_folder import versions
from pipeline.generator import to_uint8
from stage1_tokenizer.config import Stage1Config
from stage1_tokenizer.training import train

VARIANTS: dict[str, list[str]] = {
    "lgq": ["quantizer=lgq"],
    "absolute temperature": ["quantizer=lgq", "quantizer.relative_temperature=false"],
    "no straight-through share": ["quantizer=lgq", "quantizer.straight_through_weight=0"],
    "joint gradients (published)": ["quantizer=lgq", "quantizer.split_gradients=false"],
    "codes follow by free energy": ["quantizer=lgq", "quantizer.follow=free_energy"],
    "codes follow by nearest": ["quantizer=lgq", "quantizer.follow=nearest"],
    "biased usage term": ["quantizer=lgq", "quantizer.unbiased_usage=false"],
    "no usage, no peak term": ["quantizer=lgq", "quantizer.usage_weight=0", "quantizer.peak_weight=0"],
    "linear schedule": ["quantizer=lgq", "quantizer.schedule=linear"],
    "distinct start, not k-means": ["quantizer=lgq", "quantizer.start=distinct"],
    "no revival": ["quantizer=lgq", "quantizer.revive_below=0"],
    "distinct start, no revival": ["quantizer=lgq", "quantizer.start=distinct", "quantizer.revive_below=0"],
    "lgq_paper": ["quantizer=lgq_paper"],
    "vq": ["quantizer=vq"],
    "vq_ema": ["quantizer=vq_ema"],
    "fsq": ["quantizer=fsq"],
}


def main() -> None:
    """Parse the command line, then train and measure what the result file lacks."""
    parser = argparse.ArgumentParser(description="Ablate LGQ's options on the built-in images.")
    parser.add_argument("--config", default="configs/stage1/demo.yaml")
    parser.add_argument("--images", type=int, default=8000, help="training images of each variant (default: 8000)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each variant (default: 1)")
    parser.add_argument("--runs", type=Path, default=Path("runs/lgq_ablation"))
    parser.add_argument("--out", type=Path, default=Path("results/lgq_ablation.json"))
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    settings = [f"images={arguments.images}", "snapshot_every=1_000_000", "loss.perceptual=none", "loss.gan_weight=0"]
    result = read_json(arguments.out) if arguments.out.exists() else {"settings": settings, "rows": []}
    done = {(row["variant"], row["seed"]) for row in result["rows"]}
    for seed in range(arguments.seeds):
        for variant, changes in VARIANTS.items():
            if (variant, seed) in done:
                continue
            run = arguments.runs / f"{variant.replace(' ', '_')}_{seed}"
            config = load_config(Stage1Config, arguments.config, [*settings, *changes, f"run={run}", f"seed={seed}"])
            train(config)
            row = {"variant": variant, "changes": changes, "seed": seed, **measure(run, config)}
            result["rows"].append(row)
            result["versions"] = versions()
            write_json(arguments.out, result)
            print(f"{variant:32s} seed {seed}  PSNR {row['psnr']:.2f} dB  {row['codes_used']:.1%} of codes used")


@torch.no_grad()
def measure(run: Path, config: Stage1Config) -> dict[str, Any]:
    """PSNR and code usage over the whole validation split."""
    tokenizer = load_tokenizer(run)
    data = load_data(**config.data)
    errors, tokens = [], []
    for batch in ordered_batches(OrderedImages(data.validation, config.image_size), 128):
        indices = tokenizer.encode(batch["image"].float() / 127.5 - 1)
        errors.append(psnr(to_uint8(tokenizer.decode(indices)), batch["image"]))
        tokens.append(indices.flatten(0, 1))
    usage = code_usage(torch.cat(tokens), tokenizer.spec.sizes)
    scores = torch.cat(errors)
    return {
        "psnr": scores.mean().item(),
        "images": len(scores),
        "bits_per_token": tokenizer.spec.bits_per_token,
        "codes_used": usage.share,
        "perplexity": usage.perplexity,
        "tokens": sum(map(len, tokens)),
    }


if __name__ == "__main__":
    run_command(main)
