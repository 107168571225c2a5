"""Measure one job of a benchmark:  python -m eval.benchmark.measure quality --tokenizer RUN --out FOLDER --config FILE"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pipeline.core.command import run_command

EXAMPLES = """examples:
  python -m eval.benchmark.measure quality --tokenizer RUN --out FOLDER --config configs/benchmark/demo.yaml
  python -m eval.benchmark.measure generation --prior RUN --out FOLDER --config configs/benchmark/demo.yaml \\
      --job '{"method": "lgq", "bits": 10, "seed": 0, "prior": "maskgit"}' --save-images IMAGES
  python -m eval.benchmark.measure yardstick --data-from TOKENIZER --out FOLDER --config configs/benchmark/demo.yaml

`python -m eval.benchmark` runs these by itself. FOLDER gets a result.json and pictures; a result that was measured with the
same inputs is left alone. --save-images writes IMAGES/images and IMAGES/reference (PNG), which other tools may compare:
  fidelity --input1 IMAGES/images --input2 IMAGES/reference --fid --kid --prc --feature-extractor inception-v3-compat"""


def main() -> None:
    """Parse the command line, then measure."""
    parser = argparse.ArgumentParser(
        description="Measure a tokenizer, a prior or the real images of a benchmark.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="quality|generation|yardstick")
    for kind, source, what in (
        ("quality", "--tokenizer", "a finished tokenizer's run"),
        ("generation", "--prior", "a finished prior's run"),
        ("yardstick", "--data-from", "a finished tokenizer's run, whose images are measured"),
    ):
        own = kinds.add_parser(kind, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
        own.add_argument(source, dest="run", type=Path, metavar="RUN", required=True, help=what)
        own.add_argument("--out", type=Path, metavar="FOLDER", required=True, help="where the result is written")
        own.add_argument("--config", metavar="FILE", required=True, help="the benchmark's configuration")
        own.add_argument("--job", type=job_facts, metavar="JSON", default="{}", help="what the result says of the job")
        own.add_argument("--save-images", type=Path, metavar="FOLDER", help="write all images that are compared, as PNG")
        own.add_argument("--dry-run", action="store_true", help="print what would be measured, then stop")
    arguments = parser.parse_args()

    # imported here so that --help and usage errors answer at once
    from eval.benchmark.config import BenchmarkConfig
    from eval.benchmark.tasks import Order, measure
    from pipeline.core.config import load_config

    config = load_config(BenchmarkConfig, arguments.config)
    order = Order(arguments.kind, arguments.run, arguments.out, config, arguments.job, arguments.save_images)
    measure(order, dry_run=arguments.dry_run)


def job_facts(text: str) -> dict[str, Any]:
    """The mapping that a job's JSON holds."""
    facts = json.loads(text)
    if not isinstance(facts, dict):
        raise ValueError(text)
    return facts


if __name__ == "__main__":
    run_command(main)
