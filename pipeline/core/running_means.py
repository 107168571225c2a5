"""Means of training statistics between two reports, without waiting for the device at every step."""

from __future__ import annotations

from collections.abc import Mapping

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
        if not self.sums:
            return {}
        stacked = torch.stack([total / self.counts[name] for name, total in self.sums.items()])
        means = reduced(accelerator, stacked, "mean").tolist()
        names = list(self.sums)
        self.__init__()
        return dict(zip(names, means, strict=True))
