"""Means of training statistics between two reports, without waiting for the device at every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.core.launch import reduced


class RunningMeans:
    """Sums named scalars on their device; `take` gives the means over steps and processes and starts again."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Count one step's scalars; a name may be missing in some steps."""
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """The means since the last call, the same on every process."""
        state = self.state_dict(accelerator)
        self.__init__()
        return {name: (total / state["counts"][name]).item() for name, total in state["sums"].items()}

    def state_dict(self, accelerator: Accelerator) -> dict[str, Any]:
        """Sums and counts of the global batch since the last `take`, the same on every process."""
        if not self.sums:
            return {"sums": {}, "counts": {}}
        means = reduced(accelerator, torch.stack(list(self.sums.values())), "mean").cpu()
        return {"sums": dict(zip(self.sums, means.unbind(), strict=True)), "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from what `state_dict` gave, with any number of processes."""
        self.sums = {name: total.to(device) for name, total in state["sums"].items()}
        self.counts = dict(state["counts"])
