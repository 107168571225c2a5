"""Train an image tokenizer:  accelerate launch stage1_tokenizer/train.py --config configs/stage1/imagenet256_f16.yaml"""

from __future__ import annotations

from pipeline.core.command import run_command, training_parser

EXAMPLES = """examples:
  accelerate launch stage1_tokenizer/train.py                               LGQ on the built-in images, minutes on two CPU cores
  accelerate launch stage1_tokenizer/train.py quantizer=fsq run=runs/fsq    another quantizer; its options: configs/quantizer/
  accelerate launch stage1_tokenizer/train.py --config configs/stage1/folder256.yaml data.path=/my/images
  accelerate launch stage1_tokenizer/train.py --config configs/stage1/imagenet256_f16.yaml --dry-run

Running the same command again goes on where the last snapshot left it, and does nothing when the run is finished."""


def main() -> None:
    """Parse the command line, then train."""
    parser = training_parser("Train an image tokenizer.", "configs/stage1/demo.yaml", EXAMPLES)
    arguments = parser.parse_intermixed_args()  # options and settings in any order

    # imported here so that --help and usage errors answer at once
    from pipeline.core.config import load_config
    from stage1_tokenizer.config import Stage1Config
    from stage1_tokenizer.training import dry_run, train

    config = load_config(Stage1Config, arguments.config, arguments.settings)
    if arguments.dry_run:
        print(dry_run(config))
    else:
        train(config)


if __name__ == "__main__":
    run_command(main, several=True)
