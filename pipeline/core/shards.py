"""Training state that fully sharded data parallelism (FSDP2) spreads over the processes: made whole, and spread again.

Where nothing is sharded, tensors pass through as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def full(tensor: Tensor) -> Tensor:
    """A tensor whole on its device; all processes have to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(state: Any, keep: bool = True) -> Any:
    """Nested dictionaries and lists with every sharded tensor gathered, one at a time, on the CPU.

    All processes have to call it, in the same order; those that do not `keep` get None in the place of a sharded tensor.
    """
    if isinstance(state, DTensor):
        tensor = full(state.detach())
        return tensor.cpu() if keep else None
    if isinstance(state, Mapping):
        return {key: whole(value, keep) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [whole(value, keep) for value in state]
    return state


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, on the device of another and sharded as that one is."""
    if isinstance(like, DTensor):
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return tensor.to(like.device)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a whole `state_dict` of an optimizer whose parameters may be sharded."""
    parameters: list[nn.Parameter] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    values = {
        index: {
            name: spread(value, parameters[index]) if value.shape == parameters[index].shape else value
            for name, value in held.items()
        }
        for index, held in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": values})
