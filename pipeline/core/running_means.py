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
        self.sums: dict[tuple[str, ...], Tensor] = {}  # by the names of a step's scalars: their sums, and how many steps

    def add(self, values: Mapping[str, Tensor], good: Tensor) -> None:
        """Count one step's scalars, unless the step is not a good one; a name may be missing in some steps."""
        names = tuple(values)
        step = torch.stack([*(value.detach().float() for value in values.values()), good.float()])
        step = torch.where(good, step, 0)
        self.sums[names] = self.sums[names] + step if names in self.sums else step

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """The means since the last call, the same on every process; no step, no mean."""
        totals: dict[str, Tensor] = {}
        for names, sums in self._reduced(accelerator).items():
            for name, total in zip(names, sums[:-1], strict=True):
                pair = torch.stack([total, sums[-1]])
                totals[name] = totals[name] + pair if name in totals else pair
        self.__init__()
        return {name: (total / count).item() for name, (total, count) in totals.items() if count}

    def state_dict(self, accelerator: Accelerator) -> dict[str, Any]:
        """Sums of the global batch since the last `take`, the same on every process."""
        return {"sums": [[list(names), sums] for names, sums in self._reduced(accelerator).items()]}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from what `state_dict` gave, with any number of processes."""
        self.sums = {tuple(names): sums.to(device) for names, sums in state["sums"]}

    def _reduced(self, accelerator: Accelerator) -> dict[tuple[str, ...], Tensor]:
        if not self.sums:
            return {}
        means = reduced(accelerator, torch.cat(list(self.sums.values())), "mean").cpu()
        lengths = [len(sums) for sums in self.sums.values()]
        return dict(zip(self.sums, means.split(lengths), strict=True))
