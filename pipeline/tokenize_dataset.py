"""Encode a data set into a token store:  accelerate launch pipeline/tokenize_dataset.py --tokenizer RUN --out TOKENS"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from pipeline.core.command import run_command
from pipeline.core.errors import UserError

EXAMPLES = """examples:
  accelerate launch pipeline/tokenize_dataset.py                the newest tokenizer, on the data that it was trained on
  accelerate launch pipeline/tokenize_dataset.py --tokenizer runs/f16 --data imagenet --out runs/f16_tokens

  ... --part 2/8 --out runs/f16_tokens_2                        every eighth shard from the second on: one of eight machines
  python -m pipeline.tokenize_dataset --merge runs/f16_tokens_* --out runs/f16_tokens       the store that one had made
  python -m pipeline.tokenize_dataset --verify runs/f16_tokens                              every byte is as it was written

Shards that are written already are kept: running the same command again goes on. So it mends a store, once a damaged
shard is deleted."""


def main() -> None:
    """Parse the command line, then encode."""
    parser = argparse.ArgumentParser(
        description="Encode a data set into tokens, once, for training priors.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tokenizer", metavar="RUN", help="a finished tokenizer (default: the newest below runs/)")
    parser.add_argument("--data", metavar="NAME", help="a file in configs/data/ (default: what the tokenizer was trained on)")
    parser.add_argument("--out", metavar="TOKENS", help="the store (default: `tokens` beside the tokenizer's run)")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N", help="images at a time per process (default: 128)")
    parser.add_argument("--shard-images", type=int, default=8192, metavar="N", help="images in a shard (default: 8192)")
    parser.add_argument("--no-mirror", action="store_true", help="leave out the tokens of the mirrored images")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no", help="of the encoder (default: float32)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images (default: 0)")
    parser.add_argument("--max-unreadable", type=float, default=0.01, metavar="SHARE", help="of broken images (default: 0.01)")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="only shards K, K + N, …, for --merge (default: all)")
    others = parser.add_mutually_exclusive_group()
    others.add_argument("--merge", nargs="+", type=Path, metavar="PART", help="instead: join finished parts into --out")
    others.add_argument("--verify", type=Path, metavar="TOKENS", help="instead: compare a store with its checksums")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, then stop")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="options of the data, e.g. data.path=/my/images")
    arguments = parser.parse_intermixed_args()  # options and settings in any order
    limits = {"batch_size": (1, 2**20), "shard_images": (1, 2**31), "workers": (0, 1024), "max_unreadable": (0, 1)}
    for name, (least, most) in limits.items():
        if not least <= getattr(arguments, name) <= most:
            value = getattr(arguments, name)
            raise UserError(f"--{name.replace('_', '-')}: {value}; give {least} or more, up to {most}")

    part = re.fullmatch(r"(\d{1,6})/(\d{1,6})", arguments.part)
    if part is None or not 1 <= int(part[1]) <= int(part[2]):
        raise UserError(f"--part: {arguments.part}; give K/N, part K of N, such as 2/8")
    if arguments.merge and not arguments.out:
        raise UserError("--merge: no --out; say where the whole store shall be")

    # imported here so that --help and usage errors answer at once
    if arguments.verify:
        from pipeline.core.token_store import TokenStore

        print(f"{arguments.verify}: {TokenStore(arguments.verify).verify()} shards, all as they were written")
        return
    if arguments.merge:
        from pipeline.core.token_parts import check_parts, merge_parts

        if arguments.dry_run:
            print(f"{len(check_parts(arguments.merge))} parts -> {arguments.out}: nothing is missing")
            return
        store = merge_parts(arguments.merge, Path(arguments.out))
        print(f"{arguments.out}: {store.images('train')} + {store.images('validation')} images, {store.spec}")
        return

    from pipeline.tokenization import Job, tokenize

    tokenize(
        Job(
            tokenizer=arguments.tokenizer and Path(arguments.tokenizer),
            data=arguments.data,
            settings=tuple(arguments.settings),
            out=arguments.out and Path(arguments.out),
            batch_size=arguments.batch_size,
            shard_images=arguments.shard_images,
            mirrored=not arguments.no_mirror,
            precision=arguments.precision,
            workers=arguments.workers,
            max_unreadable=arguments.max_unreadable,
            part=(int(part[1]), int(part[2])),
        ),
        dry_run=arguments.dry_run,
    )


if __name__ == "__main__":
    run_command(main, several=True)
