"""Steps whose loss or gradient is not finite: left out, counted, and the end of a training that has nothing else.

    guard.keep()                                    before the forward pass
    accelerator.backward(marked(loss))              a loss that is not finite leaves its mark on all gradients
    good = guard.judge(norm)                        of the gradient, from the clipping
    step_if(good, optimizer)
    guard.restore(good)                             the statistics that the forward pass recorded
    guard.note(good, terms, images_seen, rate)

Processes average their gradients anyway, so all see the mark and decide alike without asking each other. The decision stays on
the device, and the host reads it one step late: it never waits. A step that is left out changes no weight, no moment, no
average and no statistic; the clock goes on, images seen and all that is a function of it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from pipeline.core.errors import UserError
from pipeline.core.launch import reduced
from pipeline.core.run_folder import RunFolder
from pipeline.core.shards import local
from pipeline.core.snapshot import snapshots

logger = logging.getLogger(__name__)
REMEDY = "lower optim.lr, or look at the images of that step, and train on in another run=…"


def marked(loss: Tensor, *others: Tensor) -> Tensor:
    """The loss itself; where it, or one of the others, is not finite, one whose gradients are all NaN."""
    return loss * (1 + 0 * torch.stack([value.detach().float() for value in (loss, *others)]).sum())


def step_if(good: Tensor, optimizer: AcceleratedOptimizer) -> None:
    """A step of a fused optimizer, which leaves weights and moments alone where `good` is false.

    GradScaler has its own opinion of the same gradients, which takes the place of this one: such a step is left out once.
    """
    optimizer.optimizer.found_inf = (~good).float()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()


class Averages(EMAModel):
    """The moving averages of weights; with `moving` false a step changes none (a decay of exactly 1)."""

    moving: Tensor

    def get_decay(self, optimization_step: int) -> Any:
        decay = super().get_decay(optimization_step)
        return torch.full((), decay, dtype=torch.float64, device=self.moving.device).masked_fill(~self.moving, 1)

    def step_if(self, good: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        """A step towards the parameters, if it is a good one."""
        self.moving = good
        self.step(parameters)


def persistent_buffers(module: nn.Module) -> list[Tensor]:
    """What a module's state holds beside its parameters."""
    return [value for value in module.state_dict(keep_vars=True).values() if not isinstance(value, nn.Parameter)]


class StepGuard:
    """Watches the steps of one training. `recorded`: tensors that a forward pass changes, for `keep` and `restore`.

    UserError after `limit` steps in a row that were left out. With fp16 those don't count that GradScaler leaves out to find
    its scale, until it has come down below 1, where an overflow is none of the scale.
    """

    def __init__(self, run: RunFolder, accelerator: Accelerator, limit: int, recorded: Sequence[Tensor] = ()) -> None:
        self.run, self.accelerator, self.limit = run, accelerator, limit
        self.recorded, self.kept = list(recorded), [tensor.clone() for tensor in recorded]
        self.bad, self.in_a_row = 0, 0  # since the last report, up to now
        self.terms: list[str] = []  # that were not finite since the last report
        self.first = ""  # of those in a row
        self._waiting: tuple[list[str], Tensor, torch.cuda.Event | None, int, float] | None = None

    def keep(self) -> None:
        """Remember what was recorded, before a forward pass."""
        if self.recorded:
            torch._foreach_copy_(self.kept, self.recorded)  # pyright: ignore[reportPrivateImportUsage]

    def restore(self, good: Tensor) -> None:
        """Forget what has been recorded since, unless the step is a good one."""
        for tensor, kept in zip(self.recorded, self.kept, strict=True):
            tensor.copy_(torch.where(good, tensor, kept))

    def judge(self, *norms: Tensor) -> Tensor:
        """Whether these norms of gradients are finite: a bool on the device, the same on every process."""
        # a norm of no gradients is on the CPU
        return torch.stack([norm.to(self.accelerator.device, non_blocking=True) for norm in norms]).isfinite().all()

    def note(self, good: Tensor, terms: Mapping[str, Tensor], images_seen: int, rate: float) -> None:
        """Count a step, which began at `images_seen`; what there is to say of it is said at the next call."""
        self.flush()
        values = torch.stack([good.float(), *(value.detach().float() for value in terms.values())])
        host = values.to("cpu", non_blocking=True)
        event = None
        if values.is_cuda:
            event = torch.cuda.Event()
            event.record()
        self._waiting = [*terms], host, event, images_seen, rate

    def flush(self) -> None:
        """Count the last step that was noted; UserError where it is the last that may be left out."""
        if self._waiting is None:
            return
        names, host, event, images_seen, rate = self._waiting
        self._waiting = None
        if event is not None:
            event.synchronize()
        good, *values = host.tolist()
        if good:
            self.in_a_row = 0
            return
        if self.accelerator.scaler is not None and self.accelerator.scaler.get_scale() >= 1:
            return
        broken = [name for name, value in zip(names, values, strict=True) if not math.isfinite(value)]
        self.terms += [name for name in broken if name not in self.terms]
        if not self.in_a_row:
            said = ", ".join(broken) or "a gradient"
            self.first = f"after {images_seen} images, lr {rate:.3g}, not finite: {said}"
        self.bad, self.in_a_row = self.bad + 1, self.in_a_row + 1
        if self.in_a_row >= self.limit:
            raise UserError(
                f"{self.run.path}: {self.in_a_row} steps in a row with a loss or gradient that is not finite, the first "
                f"{self.first}; {self._last_snapshot()}; {REMEDY}"
            )

    def take(self) -> dict[str, float]:
        """`bad_steps`, the steps left out since the last call, if there are any; says so in one line of the log."""
        self.flush()
        bad, terms = self.bad, ", ".join(self.terms)
        self.bad, self.terms = 0, []
        if bad and self.accelerator.is_main_process:
            logger.warning("%s: %d steps left out whose loss or gradient was not finite (%s)", self.run.path, bad, terms)
        return {"bad_steps": bad} if bad else {}

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        self.flush()
        return {"bad": self.bad, "in_a_row": self.in_a_row, "terms": self.terms, "first": self.first}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting."""
        self.bad, self.in_a_row, self.terms, self.first = (state[name] for name in ("bad", "in_a_row", "terms", "first"))

    def require_finite_weights(self, *modules: nn.Module) -> None:
        """Before a snapshot: UserError where weights are not finite, which the snapshot before it may be free of."""
        broken = [(name, value) for module in modules for name, value in _broken(module)]
        flags = reduced(self.accelerator, torch.stack([value for _, value in broken]).float(), "sum").tolist()
        names = [name for (name, _), flag in zip(broken, flags, strict=True) if flag]
        if names:
            raise UserError(
                f"{self.run.path}: weights are not finite ({', '.join(names[:4])}{', …' * (len(names) > 4)}); "
                f"{self._last_snapshot()}; {REMEDY}"
            )

    def _last_snapshot(self) -> str:
        found = snapshots(self.run.snapshots)
        return f"the last good snapshot is {found[-1]}" if found else "there is no snapshot yet"


def _broken(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names of parameters and buffers, and whether there is a number in them that must not be: in buffers only NaN."""
    for name, value in module.named_parameters():
        yield name, ~local(value.detach()).isfinite().all()
    for name, value in module.named_buffers():
        if value.is_floating_point():
            yield name, local(value).isnan().any()
