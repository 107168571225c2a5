"""Work cut into tiles that stay in the cache, and shared by threads."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Share = TypeVar("Share")
Result = TypeVar("Result")
MOST_THREADS = 16  # more would wait for Python's lock
TILE = {"cpu": (1024, 1 << 20)}  # most vectors of a tile, and its entries: on the CPU it stays in a core's cache
TILE_ELSEWHERE = (4096, 1 << 26)


def tiles(part: slice, size: int) -> Iterator[slice]:
    """The slices of a slice, `size` long but for the last."""
    for start in range(part.start, part.stop, size):
        yield slice(start, min(start + size, part.stop))


def shares(count: int, device: torch.device, least: int = 1) -> list[slice]:
    """0 ... count in equal parts, one for each of torch's threads; a single one elsewhere than on the CPU."""
    threads = min(torch.get_num_threads(), MOST_THREADS) if device.type == "cpu" else 1
    size = max(least, -(-count // threads), 1)
    return list(tiles(slice(0, count), size)) or [slice(0, 0)]


def in_threads(function: Callable[[Share], Result], parts: Sequence[Share]) -> list[Result]:
    """The function of every part, without gradient; several parts run at once, each on a thread of its own.

    Every operation on a tile is as long as a barrier between torch's own threads is, which is why the threads here meet
    once, at the end. In them torch works alone.
    """
    if len(parts) == 1:
        with torch.no_grad():
            return [function(parts[0])]
    threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def alone(part: Share) -> Result:
        torch.set_num_threads(1)
        with torch.inference_mode(inference), torch.no_grad():
            return function(part)

    try:
        with ThreadPoolExecutor(len(parts)) as pool:
            return list(pool.map(alone, parts))
    finally:
        torch.set_num_threads(threads)  # a new thread takes the number that was set last, whoever set it


def tile_sizes(n: int, k: int, device: torch.device) -> tuple[int, int]:
    """How many vectors and codes one tile of their products has."""
    most, entries = TILE.get(device.type, TILE_ELSEWHERE)
    rows = max(1, min(n, most))
    return rows, max(1, min(k, entries // rows))
