"""The registry as a table, from the classes and the shipped settings."""

import argparse
from pathlib import Path

from stage1_tokenizer.quantizers import QUANTIZERS
from stage1_tokenizer.quantizers.catalogue import page, table
from stage1_tokenizer.quantizers.options import one_of


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stage1_tokenizer.quantizers", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these (default: every quantizer)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write a page instead, as docs/quantizers.md is")
    arguments = parser.parse_args()
    try:
        names = [one_of("quantizer.name", name, QUANTIZERS) for name in arguments.names or sorted(QUANTIZERS)]
    except ValueError as error:
        parser.error(str(error))
    if arguments.markdown is None:
        print(table(names))
    else:
        arguments.markdown.write_text(page(names), encoding="utf-8")


if __name__ == "__main__":
    main()
