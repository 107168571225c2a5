"""`python -m stage1_tokenizer.quantizers [NAME ...]`: the registry as a table, from the classes and the shipped settings."""

import argparse
import math
import re
import sys
from pathlib import Path

import yaml

from stage1_tokenizer.quantizers import QUANTIZERS, GridQuantizer, build_quantizer
from stage1_tokenizer.quantizers.budget import budget_option
from stage1_tokenizer.quantizers.options import one_of

CONFIGS = Path(__file__).parents[2] / "configs" / "quantizer"
FAMILIES = {  # by the option that decides the number of bits
    "base": "composition",
    "bits": "signs",
    "levels": "scalar levels",
    "shell": "lattice",
    "codebook_size": "codebook",
}


def row(name: str) -> tuple[str, ...]:
    """Name, family, input channels, codes, bits per token, trained values, paper."""
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    quantizer = build_quantizer(**settings)
    trained = sum(parameter.numel() for parameter in quantizer.parameters() if parameter.requires_grad)
    family = FAMILIES[budget_option(name)] + (", of grids" if isinstance(quantizer, GridQuantizer) else "")
    bits = sum(math.log2(size) for size in quantizer.sizes)
    codes = " x ".join(map(str, quantizer.sizes))
    return name, family, str(quantizer.input_dim), codes, f"{bits:.2f}", str(trained), paper(name)


def paper(name: str) -> str:
    """The first line of the file that holds the class."""
    return (sys.modules[QUANTIZERS[name].__module__].__doc__ or "").strip().split("\n")[0]


def inferred(name: str) -> list[str]:
    """The sentences of the docstrings that say what was inferred, or what is not built."""
    kind = QUANTIZERS[name]
    words = " ".join(f"{sys.modules[kind.__module__].__doc__} {kind.__doc__}".split())
    sentences = re.split(r"(?<=\.)\s+(?=[A-Z])", words)
    return [text for text in sentences if re.search(r"INFERRED|inferred|known (to us )?from|[Nn]ot built", text)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stage1_tokenizer.quantizers", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these (default: every quantizer)")
    names = parser.parse_args().names or sorted(QUANTIZERS)
    try:
        names = [one_of("quantizer.name", name, QUANTIZERS) for name in names]
    except ValueError as error:
        parser.error(str(error))
    titles = ("name", "family", "input", "codes", "bits", "trained", "paper")
    rows = [titles, *(row(name) for name in names)]
    widths = [max(len(line[j]) for line in rows) for j in range(len(titles) - 1)]
    for line in rows:
        print("  ".join([*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[-1]]))
        for text in inferred(line[0]) if line is not titles else ():
            print(f"    {text}")


if __name__ == "__main__":
    main()
