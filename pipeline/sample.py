"""Generate images:  python -m pipeline.sample --class 207"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.core.command import run_command
from pipeline.sampling_arguments import add_sampling_options, file_name, sampling_options, seed_list

EXAMPLES = """examples:
  python -m pipeline.sample --class 207                           one image of class 207 from the newest finished run
  python -m pipeline.sample --class sahara --seeds 0-15           a grid of sixteen; the classes whose names hold it take turns
  python -m pipeline.sample --class "golden retriever" --pipeline runs/imagenet/maskgit --guidance 3 --steps 16
  python -m pipeline.sample --class 3 --prior ar --temperature 0.9 --top-k 100 --out picture.png

The same seed gives the same image, alone or in a grid."""


def main() -> None:
    """Parse the command line, sample, write one PNG and say where."""
    parser = argparse.ArgumentParser(
        description="Generate images of a class.", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_sampling_options(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="the PNG to write (default: samples/CLASS_SEEDS.png)")
    arguments = parser.parse_args()
    seeds = seed_list(arguments.seeds)
    options = sampling_options(arguments)

    # imported here so that --help and usage errors answer at once
    from pipeline.sampling_command import SampleRequest, sample_to_file

    request = SampleRequest(
        query=arguments.query,
        seeds=seeds,
        pipeline=arguments.pipeline and Path(arguments.pipeline),
        prior=arguments.prior,
        options=options,
        out=arguments.out or Path("samples") / f"{file_name(arguments.query)}_{file_name(arguments.seeds)}.png",
        zoom=arguments.zoom,
    )
    sample_to_file(request, dry_run=arguments.dry_run)


if __name__ == "__main__":
    run_command(main)
