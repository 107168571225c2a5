"""Equal budgets: the options with which a method spends a wanted number of bits per position of the latent grid."""

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from stage1_tokenizer.quantizers import QUANTIZERS, GridQuantizer, Quantizer, build_quantizer, on_grid
from stage1_tokenizer.quantizers.fsq import LEVELS
from stage1_tokenizer.quantizers.lattice import SHELLS
from stage1_tokenizer.quantizers.options import one_of

TOLERANCE = 0.1  # bits
NEEDED = {"dim": 8, "stages": 2}  # where a method asks for one and the caller does not say
LARGEST = 1 << 20  # of a codebook that is a table
PROBE = 12.0  # bits, of a part whose share is measured

Options = dict[str, Any]


def equal_bits(
    name: str, bits: float, options: Mapping[str, Any] | None = None, grid: tuple[int, int] = (16, 16)
) -> Options:
    """The options (those given, the one that sets the budget replaced or added) with which `name` spends `bits`.

    Bits are those per position of the grid, summed over indices and scales: bits per image / (h * w); within 0.1.
    `build_quantizer(name, **equal_bits(name, 10))` builds for every method that can spend 10 bits. A quantizer made of
    others (`base`, plain VQ where none is given) divides the budget among its parts. How many codes a method has is no
    measure of how many parameters: report these beside it.
    Raises ValueError where the method cannot spend that many, with the nearest number that was tried.
    """
    return _within(name, bits, grid, TOLERANCE, dict(options or {}))


def bits_per_position(quantizer: Quantizer | GridQuantizer, grid: tuple[int, int] = (16, 16)) -> float:
    """log2 of the combinations of all tokens of an image, per position of its latent grid."""
    wrapped = on_grid(quantizer)
    tokens = sum(h * w for h, w in wrapped.scales(grid))
    return tokens / math.prod(grid) * sum(math.log2(size) for size in wrapped.sizes)


def budget_option(name: str) -> str:
    """The constructor's option that decides the number of bits. Raises ValueError where there is none that is known."""
    parameters = inspect.signature(QUANTIZERS[name]).parameters
    for option in CANDIDATES:
        if option in parameters:
            return option
    raise ValueError(f"equal_bits: {name} has no option that decides its bits (known: {', '.join(CANDIDATES)})")


def _within(name: str, bits: float, grid: tuple[int, int], tolerance: float, options: Options) -> Options:
    option = budget_option(one_of("equal_bits.name", name, QUANTIZERS))
    parameters = inspect.signature(QUANTIZERS[name]).parameters
    options = {key: NEEDED[key] for key, p in parameters.items() if key in NEEDED and p.default is p.empty} | options
    spent, refusal = [], None
    for value in CANDIDATES[option](name, bits, grid, tolerance, options):
        chosen = options | {option: value}
        try:
            actual = bits_per_position(build_quantizer(name, **chosen), grid)
        except ValueError as error:
            refusal = error  # odd levels only, square codebooks only
            continue
        if abs(actual - bits) <= tolerance:
            return chosen
        spent.append(actual)
    if not spent and refusal is not None:
        raise ValueError(f"equal_bits: {name} refuses every {option} that spends {bits:g} bits; {refusal}")
    nearest = min(spent, key=lambda actual: abs(actual - bits), default=None)
    remedy = f"the nearest is {nearest:.2f}" if nearest else f"a table has at most {LARGEST} codes"
    raise ValueError(f"equal_bits: {name} cannot spend {bits:g} bits per position; {remedy}")


def _rate(name: str, grid: tuple[int, int], options: Options, bits: float) -> float:
    """Bits per position for every bit of one index: 2 for two indices, 680/256 for the scales of VAR on 16 x 16."""
    return bits_per_position(build_quantizer(name, **options), grid) / bits


def _codebook_sizes(name: str, bits: float, grid: tuple[int, int], tolerance: float, options: Options) -> Iterator[int]:
    each = bits / _rate(name, grid, options | {"codebook_size": 16}, 4)
    size = round(2**each) if each < 60 else LARGEST + 1
    if 1 < size <= LARGEST:
        yield size


def _bits(name: str, bits: float, grid: tuple[int, int], tolerance: float, options: Options) -> Iterator[int]:
    yield max(1, round(bits))


def _levels(name: str, bits: float, grid: tuple[int, int], tolerance: float, options: Options) -> Iterator[list[int]]:
    """FSQ's published levels first, then few channels of 5 to 9 levels, then of 2 to 17."""
    each = bits / _rate(name, grid, options | {"levels": [3]}, math.log2(3))
    for size, levels in LEVELS.items():
        if size == round(2**each):
            yield list(levels)
    for smallest, largest in ((5, 9), (3, 9), (2, 17)):
        for channels in range(1, math.ceil(each / math.log2(smallest)) + 1):
            found = itertools.combinations_with_replacement(range(largest, smallest - 1, -1), channels)
            near = [list(levels) for levels in found if abs(math.log2(math.prod(levels)) - each) <= tolerance * each / bits]
            yield from sorted(near, key=lambda levels: abs(math.log2(math.prod(levels)) - each))


def _shells(name: str, bits: float, grid: tuple[int, int], tolerance: float, options: Options) -> Iterator[str]:
    yield from SHELLS


def _bases(name: str, bits: float, grid: tuple[int, int], tolerance: float, options: Options) -> Iterator[Options]:
    base = dict(options.get("base") or {"name": "vq"})
    kind = base.pop("name")
    probe = {"name": kind} | _within(kind, PROBE, grid, math.inf, base)
    spent = bits_per_position(build_quantizer(**probe), grid)
    share = 1 / _rate(name, grid, options | {"base": probe}, spent)
    yield {"name": kind} | _within(kind, bits * share, grid, tolerance * share, base)


# by the option that sets the budget, in order; a new method with one of them needs no line here
CANDIDATES: dict[str, Callable[..., Iterator[Any]]] = {
    "base": _bases,
    "bits": _bits,
    "levels": _levels,
    "shell": _shells,
    "codebook_size": _codebook_sizes,
}
