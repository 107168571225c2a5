"""Evaluate a tokenizer and its priors:  python -m eval.run --tokenizer RUN --priors RUN RUN --out FOLDER"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.core.command import run_command

EXAMPLES = """examples:
  python -m eval.run                                           the newest tokenizer and the priors that learned its tokens
  python -m eval.run --tokenizer runs/demo/tokenizer --priors runs/demo/maskgit runs/demo/ar --out runs/demo/eval
  python -m eval.run images=10000 maskgit.steps=16 maskgit.guidance_scale=2
  LGQ_INCEPTION_WEIGHTS=FILE python -m eval.run --config configs/eval/imagenet.yaml --tokenizer RUN --priors RUN

Every part writes a result.json; parts that are finished with the same inputs are skipped. Without Inception's weights the
features are EfficientNet-Lite0's, and every number from them says so: they are not FID."""


def main() -> None:
    """Parse the command line, then evaluate."""
    parser = argparse.ArgumentParser(
        description="Evaluate a tokenizer's reconstructions and its priors' samples against real images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tokenizer", type=Path, metavar="RUN", help="a finished one (default: the newest below runs/)")
    parser.add_argument("--priors", type=Path, nargs="*", metavar="RUN", help="finished ones (default: those of the tokenizer)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: `eval` beside the tokenizer's run")
    parser.add_argument("--config", default="configs/eval/demo.yaml", metavar="FILE", help="default: configs/eval/demo.yaml")
    parser.add_argument("--dry-run", action="store_true", help="print what would be evaluated, then stop")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings on top of the file, e.g. images=10000")
    arguments = parser.parse_intermixed_args()

    # imported here so that --help and usage errors answer at once
    from eval.config import EvalConfig
    from eval.evaluate import Request, evaluate
    from pipeline.core.config import load_config

    config = load_config(EvalConfig, arguments.config, arguments.settings)
    evaluate(Request(arguments.tokenizer, arguments.priors, arguments.out, config), dry_run=arguments.dry_run)


if __name__ == "__main__":
    run_command(main)
