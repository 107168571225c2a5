"""Every quantizer by name. To add one: a file here, a YAML in configs/quantizer, a line in this table."""

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

from stage1_tokenizer.quantizers.fsq import FSQ
from stage1_tokenizer.quantizers.interface import GridQuantizer, PerVectorGrid, Quantizer, QuantizerOutput, on_grid
from stage1_tokenizer.quantizers.vq import VQ

__all__ = [
    "QUANTIZERS",
    "GridQuantizer",
    "PerVectorGrid",
    "Quantizer",
    "QuantizerOutput",
    "build_quantizer",
    "on_grid",
]

QUANTIZERS: dict[str, type[Quantizer] | type[GridQuantizer]] = {
    "fsq": FSQ,
    "vq": VQ,
}


def build_quantizer(name: str, **options: Any) -> Quantizer | GridQuantizer:
    """The quantizer of that name; the options are its constructor's arguments, and for most `dim` and `codebook_size`.

    A method that decides its own dim (FSQ: one channel per level) takes no `dim`: read `input_dim` and `dim` afterwards.
    Raises ValueError for an unknown name, an unknown or missing option, or a value that the method refuses.
    """
    if name not in QUANTIZERS:
        raise ValueError(f"quantizer.name: no quantizer {name!r}; {_closest(name, QUANTIZERS)}")
    parameters = inspect.signature(QUANTIZERS[name]).parameters
    for option in options:
        if option not in parameters:
            raise ValueError(f"quantizer.{option}: {name} has no such option; {_closest(option, parameters)}")
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in options]
    if missing:
        raise ValueError(f"quantizer.{missing[0]}: {name} needs it; give quantizer.{missing[0]}=...")
    return QUANTIZERS[name](**options)


def _closest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {matches[0]}?" if matches else f"known: {', '.join(sorted(known))}"
