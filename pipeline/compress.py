"""Images as losslessly coded tokens, and what they take:  python -m pipeline.compress encode PICTURES --out FILE.lgq"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.core.command import run_command
from pipeline.core.errors import UserError

LARGEST = 2**20
EXAMPLES = """examples:
  python -m pipeline.compress encode a.png b.png --out two.lgq           tokens under the newest prior, as few bits as it allows
  python -m pipeline.compress encode a.png --class 98 --out a.lgq --pipeline runs/demo/ar
  python -m pipeline.compress decode two.lgq --out pictures              pictures/00000.png, pictures/00001.png
  python -m pipeline.compress decode two.lgq --out pictures --images 1   that one alone
  python -m pipeline.compress measure --pipeline runs/demo/ar            bits per pixel of the store's validation images
  python -m pipeline.compress measure --pipeline runs/demo/maskgit --steps 4 --images 256

The pictures lose what the tokenizer loses, the tokens nothing: a checksum in the file refuses all but the tokens that went in.
To decode takes the prior's weights, the same kind of device and the same version of torch. Every action takes --dry-run."""


def main() -> None:
    """Parse the command line, then encode, decode or measure."""
    parser = argparse.ArgumentParser(
        description="Code the tokens of images without loss, under a prior.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="encode | decode | measure")
    encode = actions.add_parser("encode", help="pictures to a file", description="Tokenize pictures and code their tokens.")
    encode.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="any image files; cut to the pipeline's size")
    encode.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write, such as pictures.lgq")
    encode.add_argument("--class", dest="query", metavar="CLASS", help="what all of them show (default: the prior is not told)")
    decode = actions.add_parser("decode", help="a file to pictures", description="Decode a file and write its pictures as PNG.")
    decode.add_argument("file", type=Path, metavar="FILE", help="what `encode` wrote")
    decode.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to write 00000.png, 00001.png, …")
    decode.add_argument("--images", type=int, nargs="+", metavar="N", help="only these, from 0 (default: all)")
    measure = actions.add_parser(
        "measure",
        help="bits per pixel of a token store's validation images",
        description="Code validation tokens, decode them again, and write the measured rate beside its ideals as JSON.",
    )
    measure.add_argument("--tokens", type=Path, metavar="STORE", help="default: the store that the prior was trained on")
    measure.add_argument("--images", type=int, default=1024, metavar="N", help="how many, drawn by --seed (default: 1024)")
    measure.add_argument("--seed", type=int, default=0, metavar="S", help="of the drawing of images (default: 0)")
    measure.add_argument("--no-labels", action="store_true", help="do not tell the prior the classes, nor store them")
    measure.add_argument("--out", type=Path, metavar="FILE", help="JSON; the coded file lies beside it (default: by the store)")
    for action in (encode, measure):
        action.add_argument("--steps", type=int, metavar="N", help="of MaskGIT; fewer: faster, more bits (default: 16)")
        action.add_argument("--order", metavar="NAME", help="of MaskGIT: halton (default) or random")
        action.add_argument("--batch-size", type=int, default=64, metavar="N", help="images coded together (default: 64)")
    for action in (encode, decode, measure):
        action.add_argument("--pipeline", type=Path, metavar="RUN", help="a prior's run or a saved pipeline")
        action.add_argument("--dry-run", action="store_true", help="say what would be done, then stop")
        action.epilog = (
            "Without --pipeline it takes, below runs/, "
            + ("the prior that the file was coded with." if action is decode else "the newest finished prior.")
        )
    arguments = parser.parse_args()
    if arguments.action != "decode":
        for name in ("batch_size", "images"):
            if not 1 <= getattr(arguments, name, 1) <= LARGEST:
                raise UserError(f"--{name.replace('_', '-')}: {getattr(arguments, name)}; give 1 or more, up to {LARGEST}")
    if arguments.action == "measure" and arguments.out is not None and arguments.out.suffix != ".json":
        raise UserError(f"--out: {arguments.out}; give a name that ends in .json")

    # imported here so that --help and usage errors answer at once
    from pipeline import compress_command

    actions_table = {
        "encode": compress_command.encode_pictures,
        "decode": compress_command.decode_pictures,
        "measure": compress_command.measure_rate,
    }
    values = {name: value for name, value in vars(arguments).items() if name not in ("action", "dry_run")}
    actions_table[arguments.action](**values, dry_run=arguments.dry_run)


if __name__ == "__main__":
    run_command(main)
