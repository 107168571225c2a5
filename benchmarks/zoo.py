"""Every registered quantizer under one budget, on the built-in images:  python -m benchmarks.zoo

Trains the demo's tokenizer, shortened, once per method: same backbone, images, order, batch, seed, steps and losses, about the
same bits, each method's options as shipped and tuned for none. Writes results/zoo.json and the table of it, results/zoo.md;
goes on where it was stopped. Ends with an error where a method failed or did not learn.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measuring import command_line
from benchmarks.trials import Trial, run_trials
from pipeline.core.command import run_command
from pipeline.core.config import load_config
from pipeline.core.errors import UserError
from pipeline.core.files import write_text
from stage1_tokenizer.backbone import token_grid
from stage1_tokenizer.config import Stage1Config
from stage1_tokenizer.quantizers import QUANTIZERS
from stage1_tokenizer.quantizers.catalogue import at_budget, normalised_latents
from stage1_tokenizer.quantizers.options import one_of

CONFIG = "configs/stage1/demo.yaml"
GAIN = 6.0  # dB above the untrained tokenizer, a quarter of its squared error, and above a picture without codes
SOFT = 1e-3  # of the codes' energy, by which codes in training may differ from the hard ones


def main() -> None:
    """Parse the command line, train and measure what the result file lacks, print the table."""
    parser = command_line("zoo", __doc__)
    parser.add_argument("--names", nargs="+", default=sorted(QUANTIZERS), metavar="NAME", help="default: every quantizer")
    parser.add_argument("--images", type=int, default=3200, help="training images of each method (default: 3200)")
    parser.add_argument("--bits", type=float, default=10.0, help="per position of the grid (default: 10)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each method (default: 1)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, of one thread each (default: 2)")
    parser.add_argument("--out", type=Path, default=Path("results/zoo.json"), help="default: results/zoo.json")
    arguments = parser.parse_args()
    try:
        names = [one_of("--names", name, QUANTIZERS) for name in arguments.names]
    except ValueError as error:
        raise UserError(str(error)) from None
    config = load_config(Stage1Config, CONFIG)
    grid = token_grid((config.image_size, config.image_size), config.backbone.factor)
    trials = [
        Trial(name, changes(name, arguments.bits, grid), seed) for seed in range(arguments.seeds) for name in names
    ]
    result = run_trials(trials, CONFIG, arguments.images, arguments.out, arguments.jobs)
    page = table(result)
    write_text(arguments.out.with_suffix(".md"), page)
    print(page)
    failed = sorted({row["name"] for row in result["rows"] if verdict(row) != "learns"})
    if failed:
        raise UserError(f"{arguments.out}: {', '.join(failed)} failed or did not learn; the table says which")


def changes(name: str, bits: float, grid: tuple[int, int]) -> tuple[str, ...]:
    """The settings of a method: its shipped options, brought to the bits where it can spend just these."""
    quantizer = at_budget(name, bits, {}, grid)  # where a method has the bits it has, the row says how many
    return f"quantizer={json.dumps(quantizer)}", f"backbone.latent_norm={json.dumps(normalised_latents(name))}"


def verdict(row: dict[str, Any]) -> str:
    """Whether training brought the error far below that before training, and that of any one picture for all."""
    if "error" in row:
        return "failed"
    learns = row["psnr"] >= max(row["psnr_untrained"], row["psnr_without_codes"]) + GAIN
    return "learns" if learns else "does not learn"


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "seed": lambda row: f"{row['seed']}",
    "bits": lambda row: f"{row['nominal_bits']:.2f}",
    "effective": lambda row: f"{row['effective_bits']:.2f}",
    "usage": lambda row: f"{row['codes_used']:.1%}",
    "perplexity": lambda row: f"{row['perplexity']:.0f}",
    "untrained dB": lambda row: f"{row['psnr_untrained']:.1f}",
    "PSNR dB": lambda row: f"{row['psnr']:.2f} ± {row['psnr_error']:.2f}",
    "verdict": verdict,
    "parameters": lambda row: f"{row['trained_parameters']}",
    "ms/step": lambda row: f"{row['ms_per_step']:.0f}",
    "MiB": lambda row: f"{row['peak_mb']:.0f}",
    "in training": lambda row: "soft" if row["training_gap"] > SOFT else "hard",
}


def table(result: dict[str, Any]) -> str:
    """The result as a page of Markdown, the best first."""
    done = [row for row in result["rows"] if "error" not in row]
    budget = ", ".join(f"`{text}`" for text in result["settings"])
    lines = [
        "# Every quantizer under one budget",
        "",
        f"Made by `python -m benchmarks.zoo`: `{result['config']}` with {budget}.",
        "Options are those of `configs/quantizer`, tuned for none. PSNR is of the whole validation split (± standard error",
        "over its images, not over trainings), by the hard path: image, indices, image. Soft in training: the decoder",
        "learns on other codes than these. Untrained: after the start from data, on every eighth image. Bits are per",
        "position of the grid; their use counts the tokens of all scales together. Parameters are those the quantizer",
        "trains. Milliseconds (of a processor) and MiB (give or take ten): median and peak of a step, of one thread. One",
        "short run of each, untuned, ranks no papers.",
        "",
        f"| method | {' | '.join(COLUMNS)} |",
        f"|---|{'---:|' * len(COLUMNS)}",
    ]
    for row in sorted(done, key=lambda row: -row["psnr"]):
        lines.append(f"| `{row['name']}` | {' | '.join(cell(row) for cell in COLUMNS.values())} |")
    lines += [f"| `{row['name']}` | {row['seed']} | failed: {row['error']} |" for row in result["rows"] if "error" in row]
    if done:
        first, versions = done[0], result["versions"]
        lines += [
            "",
            f"The one best picture for all {first['images']} validation images reaches {first['psnr_without_codes']:.2f} dB; "
            f'"learns" is {GAIN:g} dB above that and above the untrained tokenizer.',
            f"Data {first['data_fingerprint']}, torch {versions['packages']['torch']}, {versions['device']}, "
            f"code {versions['code']}.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_command(main)
