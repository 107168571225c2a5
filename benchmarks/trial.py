"""One training that is compared with others, in a process of its own: what it costs, what it starts from, what it reaches.

    python -m benchmarks.trial --config FILE --out FILE key=value ...

`benchmarks.trials` starts these. On the CPU; memory is read from /proc, so this needs Linux.
"""

from __future__ import annotations

import logging
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from benchmarks.measuring import command_line, forget_peak, measured_by, resident
from eval.metrics import psnr
from pipeline.api import load_tokenizer
from pipeline.core.code_usage import code_usage
from pipeline.core.command import run_command
from pipeline.core.config import load_config
from pipeline.core.data.images import ImageDataset, OrderedImages, image_batches, ordered_batches
from pipeline.core.data.sources import load_data
from pipeline.core.files import write_json
from pipeline.core.launch import start_accelerator
from pipeline.core.rng import derive_seed
from pipeline.generator import to_uint8
from stage1_tokenizer.config import Stage1Config
from stage1_tokenizer.objective import TokenizerObjective
from stage1_tokenizer.tokenizer import Tokenizer
from stage1_tokenizer.training import build_tokenizer, initialize_codes, train

STEPS = 12  # that are timed, after two that are not


def main() -> None:
    """Parse the command line, train, measure, write the row."""
    parser = command_line("trial", __doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of a tokenizer's training")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where its row goes, as JSON")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings on top of the file, e.g. quantizer=vq")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    write_json(arguments.out, trial(load_config(Stage1Config, arguments.config, arguments.settings)))


def trial(config: Stage1Config) -> dict[str, Any]:
    """The row of one training: its cost first, while the process is still small, then its result."""
    data = load_data(**config.data)
    split = OrderedImages(data.validation, config.image_size)
    validation = torch.cat([batch["image"] for batch in ordered_batches(split, 128)])
    row = before_training(config, ImageDataset(data.train, config.image_size, config.flip, config.seed), validation)
    tokenizer = load_tokenizer(train(config))
    mean = to_uint8(validation.float().mean(0, keepdim=True) / 127.5 - 1).expand_as(validation)
    return {
        **row,
        "psnr_without_codes": psnr(mean, validation).mean().item(),
        **quality(tokenizer, validation),
        "data_fingerprint": data.fingerprint,
        "versions": measured_by(),
    }


def before_training(config: Stage1Config, dataset: ImageDataset, validation: UInt8[Tensor, "n 3 y x"]) -> dict[str, Any]:
    """What the tokenizer reconstructs as `train` would start it, and what a training step costs.

    "peak_mb" is the highest resident memory of the steps, above that of the process before there was a tokenizer: weights,
    gradients, moments, activations. "ms_per_step" is processor time, which neighbours disturb less than the clock's. The steps
    are those of `train` without its data loading and its average of the weights.
    """
    accelerator = start_accelerator(config.precision, "none", Path(config.run))
    batch = next(iter(image_batches(dataset, 0, config.batch_size, config.batch_size)))["image"].float() / 127.5 - 1
    before = resident("VmRSS")
    torch.manual_seed(derive_seed(config.seed, "weights"))
    tokenizer = build_tokenizer(config)
    tokenizer.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # as `train` does
    initialize_codes(tokenizer, dataset, config, accelerator)
    tokenizer.quantizer.anneal(0.0)
    untrained = quality(tokenizer.eval(), validation[::8])["psnr"]
    gap = training_gap(tokenizer.train(), batch)

    objective = TokenizerObjective(tokenizer, None, 0.0).train()
    optimizer = torch.optim.AdamW(tokenizer.parameters(), config.optim.lr, weight_decay=config.optim.weight_decay, fused=True)
    forget_peak()
    seconds = []
    for number in range(STEPS + 2):
        start = time.process_time()
        objective(batch, config.micro_batch, None, 0.0).loss.backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), config.optim.clip)
        optimizer.step()
        optimizer.zero_grad()
        tokenizer.quantizer.anneal((number + 1) * config.batch_size / config.images)
        seconds.append(time.process_time() - start)
    return {
        "psnr_untrained": untrained,
        "training_gap": gap,
        "trained_parameters": sum(p.numel() for p in tokenizer.quantizer.parameters() if p.requires_grad),
        "ms_per_step": 1000 * statistics.median(seconds[2:]),
        "peak_mb": (resident("VmHWM") - before) / 2**20,
    }


def training_gap(tokenizer: Tokenizer, batch: Tensor) -> float:
    """|training codes - hard codes|^2 / |hard codes|^2: 0 where the decoder learns on what it will be given."""
    quantized = tokenizer.quantize(tokenizer.latents(batch))
    hard = tokenizer.quantizer.dequantize(quantized.indices, tokenizer.grid)
    return ((quantized.codes - hard).square().sum() / hard.square().sum()).item()


@torch.no_grad()
def quality(tokenizer: Tokenizer, images: UInt8[Tensor, "n 3 y x"]) -> dict[str, Any]:
    """PSNR, and code usage, of the hard path: images to indices to images. Bits are per position of the grid."""
    errors, tokens = [], []
    for batch in images.split(128):
        indices = tokenizer.encode(batch.float() / 127.5 - 1)
        errors.append(psnr(to_uint8(tokenizer.decode(indices)), batch))
        tokens.append(indices.flatten(0, 1))
    spec = tokenizer.spec
    usage = code_usage(torch.cat(tokens), spec.sizes)
    scores, positions = torch.cat(errors), spec.grid[0] * spec.grid[1]
    return {
        "psnr": scores.mean().item(),
        "psnr_error": (scores.std() / len(scores) ** 0.5).item(),
        "images": len(scores),
        "codes_used": usage.share,
        "perplexity": usage.perplexity,
        "tokens": usage.n,
        "nominal_bits": spec.bits_per_image / positions,
        "effective_bits": usage.effective_bits * spec.t / positions,
    }


if __name__ == "__main__":
    run_command(main)
