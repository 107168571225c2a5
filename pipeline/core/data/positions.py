"""The data's clock: positions 0, 1, 2, ... without end, each a fixed image of a fixed epoch."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from torch.utils.data import Sampler

from pipeline.core.errors import UserError

DRAWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class EpochOrder:
    """What one pass over the data looks like: the order of the images, and which of them are mirrored."""

    epoch: int
    indices: Int[np.ndarray, " n"]
    flips: Bool[np.ndarray, " n"]


def epoch_order(seed: int, epoch: int, n: int) -> EpochOrder:
    """The order of `n` images in an epoch, a function of (seed, epoch) alone through a keyed Philox generator.

    Takes five bytes per image: what `rng.permutation(n)` and `rng.random(n) < 0.5` give, without their 64 bits.
    """
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))
    indices = np.arange(n, dtype=np.int32 if n <= 2**31 else np.int64)
    rng.shuffle(indices)
    flips = np.empty(n, dtype=bool)
    for start in range(0, n, DRAWS_AT_ONCE):
        part = flips[start:start + DRAWS_AT_ONCE]
        part[:] = rng.random(len(part)) < 0.5
    return EpochOrder(epoch, indices, flips)


class PositionSampler(Sampler[list[int]]):
    """A batch sampler over positions: for each global batch of `batch_size`, the contiguous rows of this process.

    Batches are always full: the last one may reach past `stop`, since positions have no end.
    Raises UserError when the processes cannot share a batch evenly.
    """

    def __init__(self, start: int, stop: int, batch_size: int, rank: int = 0, world_size: int = 1):
        if batch_size < 1 or batch_size % world_size:
            raise UserError(f"batch_size: {batch_size} images cannot be shared by {world_size} processes; "
                            f"use a multiple of {world_size}")
        self.start, self.stop, self.batch_size = start, stop, batch_size
        self.rows = batch_size // world_size
        self.offset = rank * self.rows

    def __len__(self) -> int:
        return max(0, -(-(self.stop - self.start) // self.batch_size))

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(self.start + self.offset, self.stop + self.offset, self.batch_size):
            yield list(range(first, first + self.rows))
