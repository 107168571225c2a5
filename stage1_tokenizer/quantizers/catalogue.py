"""What there is to know of a quantizer without running it: from its class, its docstrings and its shipped settings."""

import contextlib
import functools
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stage1_tokenizer.quantizers import QUANTIZERS, GridQuantizer, build_quantizer
from stage1_tokenizer.quantizers.budget import budget_option, equal_bits

CONFIGS = Path(__file__).parents[2] / "configs" / "quantizer"
FAMILIES = {  # by the option that decides the number of bits
    "base": "composition",
    "bits": "signs",
    "levels": "scalar levels",
    "shell": "lattice",
    "codebook_size": "codebook",
}


@dataclass(frozen=True)
class Entry:
    """A quantizer as shipped: `trained` values learn by gradient, `stored` ones count the moving and fixed codebooks too."""

    name: str
    family: str
    paper: str
    input_dim: int
    sizes: tuple[int, ...]
    trained: int
    stored: int
    inferred: tuple[str, ...]

    @property
    def bits(self) -> float:
        """Of one token, all indices together."""
        return sum(math.log2(size) for size in self.sizes)


@functools.cache
def entry(name: str) -> Entry:
    """The entry of a registered name."""
    quantizer = build_quantizer(**settings(name))
    return Entry(
        name=name,
        family=FAMILIES[budget_option(name)] + (", of grids" if isinstance(quantizer, GridQuantizer) else ""),
        paper=(sys.modules[QUANTIZERS[name].__module__].__doc__ or "").strip().split("\n")[0],
        input_dim=quantizer.input_dim,
        sizes=quantizer.sizes,
        trained=sum(parameter.numel() for parameter in quantizer.parameters() if parameter.requires_grad),
        stored=sum(value.numel() for value in quantizer.state_dict().values()),
        inferred=tuple(inferred(name)),
    )


def settings(name: str) -> dict[str, Any]:
    """The shipped settings, the name among them."""
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))


def at_budget(name: str, bits: float, options: Mapping[str, Any], grid: tuple[int, int]) -> dict[str, Any]:
    """The shipped settings, `options` on top, brought to these bits per position; as they are where it cannot spend them."""
    given = settings(name) | dict(options)
    del given["name"]
    with contextlib.suppress(ValueError):  # the lattices have the bits they have
        given = equal_bits(name, bits, given, grid)
    return {"name": name, **given}


def normalised_latents(name: str) -> bool:
    """Whether a comparison gives it normalised latents: all but levels per channel, as the backbone's docstring says."""
    return FAMILIES[budget_option(name)] != "scalar levels"


def inferred(name: str) -> list[str]:
    """The sentences of the docstrings that say what was inferred, or what is not built."""
    kind = QUANTIZERS[name]
    words = " ".join(f"{sys.modules[kind.__module__].__doc__} {kind.__doc__}".split())
    sentences = re.split(r"(?<=\.)\s+(?=[A-Z])", words)
    return [text for text in sentences if re.search(r"INFERRED|inferred|known (to us )?from|[Nn]ot built", text)]


def table(names: list[str]) -> str:
    """The entries as aligned text, under each what is inferred."""
    titles = ("name", "family", "input", "codes", "bits", "trained", "paper")
    entries = [entry(name) for name in names]
    cells = [(e.name, e.family, str(e.input_dim), codes(e), f"{e.bits:.2f}", str(e.trained), e.paper) for e in entries]
    rows = [titles, *cells]
    widths = [max(len(row[j]) for row in rows) for j in range(len(titles) - 1)]
    lines = ["  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[-1]]) for row in rows]
    notes = [(), *(e.inferred for e in entries)]
    pairs = zip(lines, notes, strict=True)
    return "\n".join(text for line, below in pairs for text in (line, *(f"    {note}" for note in below)))


def page(names: list[str]) -> str:
    """The entries as a page of Markdown: a table of all, then what is inferred of each."""
    entries = sorted((entry(name) for name in names), key=lambda e: (e.family, e.name))
    lines = [
        "# Quantizers",
        "",
        "Made by `python -m stage1_tokenizer.quantizers --markdown docs/quantizers.md` from the registry, the docstrings and",
        "[`configs/quantizer`](../configs/quantizer); not to be edited. `quantizer=NAME` chooses one, `quantizer.OPTION=VALUE`",
        "sets its options. Input: channels it wants. Bits: of a token. Trained: values that learn by gradient; stored: with",
        "moving and fixed codebooks, and the state of schedules and statistics. A code that is no parameter costs no weights:",
        "report both beside the bits.",
        "",
        "| name | family | input | codes | bits | trained | stored | paper |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| [`{e.name}`](../configs/quantizer/{e.name}.yaml) | {e.family} | {e.input_dim} | {codes(e)} | {e.bits:.2f} | "
        f"{e.trained} | {e.stored} | {e.paper} |"
        for e in entries
    ]
    lines += ["", "## Inferred, or not built", ""]
    lines += [f"- `{e.name}`: {' '.join(e.inferred)}" for e in entries if e.inferred]
    return "\n".join(lines) + "\n"


def codes(e: Entry) -> str:
    """The sizes of the indices, as in 32 x 32."""
    return " x ".join(map(str, e.sizes))
