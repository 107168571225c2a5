"""Shells of lattices as codebooks: Lambda24-SQ, the spherical Leech quantizer, and its smaller relatives D4, E8 and BW16.

The vectors are those of Conway and Sloane, Sphere Packings, Lattices and Groups, chapters 4 and 11: constant, exact.
"""

import functools
import itertools

import torch
from jaxtyping import Int
from torch import Tensor

from stage1_tokenizer.quantizers.options import one_of
from stage1_tokenizer.quantizers.unit_codes import UnitCodes

GOLAY = sum(1 << power for power in (0, 2, 4, 5, 6, 10, 11))  # x^11 + x^10 + x^6 + x^5 + x^4 + x^2 + 1


class Lattice(UnitCodes):
    """q = the vector of the shell with the largest inner product with z / |z|, divided by its length; J straight-through.

    shell: "leech", all 196,560 minimal vectors in 24 dimensions, 17.6 bits, cos <= 1/2 between any two (a chord of 1); its
        parts "leech_type2" (97,152), "leech_type3" (98,304) and "leech_type4" (1,104, 10.1 bits); "bw16" (4,320 in 16),
        "e8" (240 in 8), "d4" (24 in 4). The shell decides the dim.

    Published: no loss, weight 0 on commitment and entropy, one dense product with the codebook. Here the search is tiled
    and the codebook generated, not stored: integers, so that ties are exact. The paper's table prints .866 as the shell's
    smallest distance, which is that of no chord of it.
    """

    shell: Tensor

    def __init__(self, shell: str = "leech") -> None:
        vectors = SHELLS[one_of("Lattice.shell", shell, SHELLS)]()
        super().__init__(vectors.shape[1], [len(vectors)])
        self.register_buffer("shell", vectors.float(), persistent=False)

    @property
    def directions(self) -> Tensor:
        return self.shell


def golay_code() -> Int[Tensor, "4096 24"]:
    """The extended binary Golay code: the cyclic [23, 12, 7] code of the generator above, with a parity bit."""
    shifts = torch.tensor([[GOLAY << shift >> bit & 1 for bit in range(23)] for shift in range(12)])
    words = _bits(12) @ shifts % 2
    return torch.cat([words, words.sum(1, keepdim=True) % 2], 1)


def reed_muller_code() -> Int[Tensor, "32 16"]:
    """RM(1, 4): the affine functions of four bits."""
    return _bits(5) @ torch.cat([_bits(4), torch.ones(16, 1, dtype=torch.int64)], 1).T % 2


def pairs(n: int) -> Int[Tensor, "k n"]:
    """(+-2, +-2, 0, ...) in every order, C(n, 2) * 4."""
    places = torch.tensor(list(itertools.combinations(range(n), 2)))
    signs = 2 - 4 * _bits(2)
    vectors = torch.zeros(len(places), 4, n, dtype=torch.int64)
    return vectors.scatter_(2, places[:, None].expand(-1, 4, -1), signs.expand(len(places), -1, -1)).flatten(0, 1)


def even_signs(words: Int[Tensor, "m n"]) -> Int[Tensor, "k n"]:
    """+-1 where a word of weight 8 is 1, with an even number of minus signs: 2^7 for each."""
    words = words[words.sum(1) == 8]
    signs = _bits(8)
    signs = 1 - 2 * signs[signs.sum(1) % 2 == 0]
    places = words.nonzero()[:, 1].view(-1, 1, 8).expand(-1, 128, -1)
    vectors = torch.zeros(len(words), 128, words.shape[1], dtype=torch.int64)
    return vectors.scatter_(2, places, signs.expand(len(words), -1, -1)).flatten(0, 1)


def odd_vectors() -> Int[Tensor, "98304 24"]:
    """(-3, 1^23) with the -3 anywhere, negated on a word of the Golay code: 24 * 4096."""
    start = 1 - 4 * torch.eye(24, dtype=torch.int64)
    return (start * (1 - 2 * golay_code())[:, None]).flatten(0, 1)


def _bits(n: int) -> Int[Tensor, "2**n n"]:
    """All patterns of n bits, counting up."""
    return torch.arange(1 << n)[:, None] >> torch.arange(n) & 1


# Leech: squared length 32; the others 8. Types 2 and 4 are twice the construction of E8 and BW16.
SHELLS = {
    "d4": lambda: pairs(4),
    "e8": lambda: torch.cat([even_signs(torch.ones(1, 8, dtype=torch.int64)), pairs(8)]),
    "bw16": lambda: torch.cat([even_signs(reed_muller_code()), pairs(16)]),
    "leech_type2": lambda: 2 * even_signs(golay_code()),
    "leech_type3": odd_vectors,
    "leech_type4": lambda: 2 * pairs(24),
    "leech": lambda: torch.cat([2 * even_signs(golay_code()), odd_vectors(), 2 * pairs(24)]),
}
SHELLS = {name: functools.cache(make) for name, make in SHELLS.items()}
