"""Train a prior on tokens:  accelerate launch stage2_prior/train.py --config configs/stage2/maskgit_b.yaml tokens=TOKENS"""

from __future__ import annotations

from pipeline.core.command import run_command, training_parser

EXAMPLES = """examples:
  accelerate launch stage2_prior/train.py                                           MaskGIT on the demo's tokens
  accelerate launch stage2_prior/train.py --config configs/stage2/ar_demo.yaml      the autoregressive prior
  accelerate launch stage2_prior/train.py --config configs/stage2/var_demo.yaml     for tokens of several scales (VAR)
  accelerate launch stage2_prior/train.py --config configs/stage2/maskgit_b.yaml tokens=TOKENS run=runs/maskgit_b
  accelerate launch stage2_prior/train.py --config configs/stage2/ar_l.yaml tokens=TOKENS --dry-run

The tokens come from pipeline/tokenize_dataset.py. Running the same command again goes on where the last snapshot left it,
and does nothing when the run is finished."""


def main() -> None:
    """Parse the command line, then train."""
    parser = training_parser("Train a prior on a token store.", "configs/stage2/maskgit_demo.yaml", EXAMPLES)
    arguments = parser.parse_intermixed_args()  # options and settings in any order

    # imported here so that --help and usage errors answer at once
    from pipeline.core.config import load_config
    from stage2_prior.config import Stage2Config
    from stage2_prior.training import dry_run, train

    config = load_config(Stage2Config, arguments.config, arguments.settings)
    if arguments.dry_run:
        print(dry_run(config))
    else:
        train(config)


if __name__ == "__main__":
    run_command(main, several=True)
