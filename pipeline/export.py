"""Write a trained pipeline for others:  python -m pipeline.export runs/demo/maskgit --out FOLDER"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.core.command import run_command

EXAMPLES = """examples:
  python -m pipeline.export runs/demo/maskgit --out satellites               a diffusers pipeline with its model card
  python -m pipeline.export runs/demo/ar --out satellites --results runs/demo/eval
  python -m pipeline.export runs/demo/ar --out satellites_lm --transformers  the prior alone, as a causal language model

Without --results, what eval.run measured on this prior is looked for beside its run, and goes into the card if it is there."""


def main() -> None:
    """Parse the command line, load, write the folder and say how to load it."""
    parser = argparse.ArgumentParser(
        description="Write a trained pipeline as a folder that diffusers, or transformers, loads by itself.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pipeline", type=Path, metavar="RUN", help="the run of a prior, or a saved pipeline")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the folder to write")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="what eval.run wrote of this prior, for the model card")
    parser.add_argument("--transformers", action="store_true", help="write an autoregressive prior for transformers instead")
    parser.add_argument("--dry-run", action="store_true", help="print what would be written, then stop")
    arguments = parser.parse_args()

    # imported here so that --help and usage errors answer at once
    from pipeline.export_command import export_language_model, export_pipeline

    if arguments.transformers:
        export_language_model(arguments.pipeline, arguments.out, arguments.dry_run)
    else:
        export_pipeline(arguments.pipeline, arguments.out, arguments.results, arguments.dry_run)


if __name__ == "__main__":
    run_command(main)
