"""Statistics of the global batch: what one process would see if it held every process's vectors. No-ops when alone.

Every process holds equally many vectors; the losses' gradients are averaged over processes, as DDP does.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist


def processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def global_sum(value: Tensor) -> Tensor:
    """The sum over processes, without gradient."""
    value = value.detach()
    if processes() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def global_mean(value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The mean over processes, whose gradient is exact once DDP has averaged the gradients.

    d loss/d mean * d value/d theta on each process, averaged, is d loss/d mean * d mean/d theta.
    """
    if processes() == 1:
        return value
    return global_sum(value) / processes() + (value - value.detach())


def gather(rows: Float[Tensor, "n ..."]) -> Float[Tensor, "m ..."]:
    """The rows of all processes in the order of their ranks, without gradient."""
    rows = rows.detach()
    if processes() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(processes())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def from_first_process(value: Tensor) -> Tensor:
    """Process 0's tensor, on every process."""
    if processes() > 1:
        value = value.detach().clone()
        dist.broadcast(value, src=0)
    return value
