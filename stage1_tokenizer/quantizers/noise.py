"""Random numbers that belong to a vector: functions of a key, and of how many vectors came before it in training."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stage1_tokenizer.quantizers.global_batch import processes, rank

GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, as int64


class Noise(nn.Module):
    """Noise of shape "n c", one row per vector; two processes with half the vectors draw what one process would.

    `key` comes from the seed at construction; `drawn` counts the rows of the global batch, so that no noise comes twice,
    and resuming goes on where it stopped. No generator is read: the numbers are a hash (splitmix64, Steele et al. 2014),
    the same on every device.
    """

    key: Tensor
    drawn: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("key", torch.randint(1 << 62, ()))
        self.register_buffer("drawn", torch.tensor(0))

    @torch.no_grad()
    def rows(self, n: int) -> Int[Tensor, " n"]:
        """The numbers of the next n vectors of this process: a vector's noise is a function of its number."""
        rows = self.drawn + rank() * n + torch.arange(n, device=self.key.device)
        self.drawn += n * processes()
        return rows

    @torch.no_grad()
    def uniform(self, like: Float[Tensor, "n c"], rows: Int[Tensor, " n"] | None = None) -> Float[Tensor, "n c"]:
        """U(0, 1) in steps of 2^-23, both ends excluded, for the vectors of these numbers, or for the next."""
        rows = self.rows(len(like)) if rows is None else rows
        columns = torch.arange(like.shape[1], device=like.device)
        bits = _hash(_hash(self.key + rows * GOLDEN)[:, None] + columns * GOLDEN)
        return ((bits & (1 << 23) - 1).to(like.dtype) + 0.5) / (1 << 23)

    def gumbel(self, like: Float[Tensor, "n c"], rows: Int[Tensor, " n"] | None = None) -> Float[Tensor, "n c"]:
        """-log(-log U): argmax(logits + gumbel) has the probabilities softmax(logits)."""
        return -(-self.uniform(like, rows).log()).log()

    def normal(self, like: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """N(0, 1)."""
        return math.sqrt(2) * torch.erfinv(2 * self.uniform(like) - 1)


def _hash(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """splitmix64's finalizer; int64 products wrap around, and shifts are made logical by a mask."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & (1 << 33) - 1)
