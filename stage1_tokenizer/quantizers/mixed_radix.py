"""Several small digits as one index: index = sum_j digit_j * prod_{m<j} sizes_m."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def radices(sizes: Sequence[int]) -> Int[Tensor, " d"]:
    """What a digit is worth: 1, sizes[0], sizes[0] * sizes[1], ..."""
    return torch.tensor([math.prod(sizes[:j]) for j in range(len(sizes))])


def pack(digits: Int[Tensor, "n d"], radix: Int[Tensor, " d"]) -> Int[Tensor, "n 1"]:
    return (digits * radix).sum(1, keepdim=True)


def unpack(indices: Int[Tensor, "n 1"], radix: Int[Tensor, " d"], sizes: Int[Tensor, " d"]) -> Int[Tensor, "n d"]:
    return indices // radix % sizes
