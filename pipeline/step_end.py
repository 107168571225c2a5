"""What happens after every step of a sampler, as diffusers' pipelines have it: a callback, a progress bar, an early end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from pipeline.core.errors import UserError

CALLBACK_TENSORS = ["tokens"]
# (pipeline, step, timestep, tensors) -> tensors
StepEndCallback = Callable[[Any, int, int, dict[str, Tensor]], dict[str, Tensor]]


class StepEnd:
    """A sampler's `progress` (stage2_prior/sampling.py) that moves the pipeline's bar and calls back.

    The bar comes with the first step, since only the sampler knows how many there are; a second pass gets a second bar.
    Raises UserError for tensors that there are not, and for tokens that come back in another shape or unknown.
    """

    def __init__(self, pipeline: Any, callback: StepEndCallback | None, tensors: Sequence[str]) -> None:
        for name in tensors:
            if name not in CALLBACK_TENSORS:
                raise UserError(f"callback_on_step_end_tensor_inputs: {name}; there are {', '.join(CALLBACK_TENSORS)}")
        self.pipeline, self.callback, self.tensors = pipeline, callback, tensors
        self.bar: Any = None
        self.calls = 0

    def __enter__(self) -> StepEnd:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def __call__(self, done: int, steps: int, tokens: Int[Tensor, "b t d"]) -> Int[Tensor, "b t d"] | None:
        """The tokens to go on with, None where the pipeline was interrupted."""
        if self.bar is None:
            self.bar, self.calls = self.pipeline.progress_bar(total=steps), 0
        self.bar.update(done - self.bar.n)
        if done == steps:
            self._close()
        if self.callback is not None:
            available = {"tokens": tokens.clone()}  # what is written into them in place counts only if it is given back
            given = {name: available[name] for name in self.tensors}
            answer = self.callback(self.pipeline, self.calls, steps - done, given)
            if not isinstance(answer, dict):
                raise UserError(f"callback_on_step_end: gave back {type(answer).__name__}; give a dict, {{}} changes nothing")
            tokens = self._checked(answer.get("tokens", tokens), tokens)
        self.calls += 1
        return None if self.pipeline.interrupt else tokens

    def _checked(self, changed: Tensor, tokens: Tensor) -> Tensor:
        if changed.shape != tokens.shape:
            raise UserError(f"callback_on_step_end: tokens of shape {tuple(changed.shape)}; they were {tuple(tokens.shape)}")
        sizes = torch.tensor(self.pipeline.prior.spec.sizes, device=changed.device)
        if (((changed < 0) | (changed >= sizes)) & (tokens >= 0)).any():
            raise UserError(f"callback_on_step_end: a token outside {sizes.tolist()} where one was known; only change codes")
        return torch.where(tokens < 0, tokens, changed.to(tokens))

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None
