"""What samplers are given: logits of a model that they know nothing else of, worked out as they are asked for; and guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@runtime_checkable
class Logits(Protocol):
    """Logits at n positions, worked out for some of them as they are asked for; `sizes` says how many each index has,
    `independent` whether they are the same whatever the indices before it."""

    @property
    def sizes(self) -> tuple[int, ...]: ...

    @property
    def independent(self) -> bool: ...

    def __call__(self, j: int, places: Int[Tensor, " s"], before: Int[Tensor, "s j"]) -> Float[Tensor, "s _k"]:
        """Of index j at some of the positions, where the indices before it have these values."""
        ...

    def between(
        self,
        j: int,
        ends: tuple[Int[Tensor, " s"], Int[Tensor, " s"]],
        weight: Float[Tensor, "s 1"],
        before: Int[Tensor, "s j"],
    ) -> Float[Tensor, "s _k"]:
        """On the line from the logits at the first positions (weight 0) to those at the second (1), or beyond it: float32."""
        start, end = (self(j, places, before).float() for places in ends)
        return torch.lerp(start, end, weight)


@dataclass(frozen=True)
class TensorLogits(Logits):
    """The logits of a model that gives them all at once: a tensor "... k" per index."""

    tensors: list[Float[Tensor, "... _k"]]

    @property
    def independent(self) -> bool:
        return True

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(tensor.shape[-1] for tensor in self.tensors)

    def __call__(self, j: int, places: Int[Tensor, " s"], before: Int[Tensor, "s j"]) -> Float[Tensor, "s _k"]:
        return self.tensors[j].flatten(0, -2)[places]


@runtime_checkable
class MaskedLogits(Protocol):
    """Logits at `positions`, row by row, for every branch in turn: the branches (True: with the label, False: without)
    follow each other. `rows` says which samples of the batch these are; the values of masked tokens mean nothing."""

    def __call__(
        self,
        tokens: Int[Tensor, "r t d"],
        masked: Bool[Tensor, "r t"],
        positions: Int[Tensor, "r m"],
        rows: Int[Tensor, " r"],
        branches: tuple[bool, ...],
    ) -> Logits: ...


@runtime_checkable
class CausalLogits(Protocol):
    """Logits of the m tokens of each sample from its number `start` on, each from all tokens before it. Sample by sample, m for
    each, for every branch in turn; beyond the last token they mean nothing.

    Called again and again with the same sequences as they become known, so that it may keep keys and values."""

    def __call__(self, tokens: Int[Tensor, "b t d"], start: Sequence[int], m: int, branches: tuple[bool, ...]) -> Logits: ...


@runtime_checkable
class NextLogits(Protocol):
    """Logits of all tokens of the scale that follows `tokens`, sample by sample, for every branch in turn.

    Called with ever longer prefixes of the same sequences, so that it may keep keys and values."""

    def __call__(self, tokens: Int[Tensor, "b i d"], branches: tuple[bool, ...]) -> Logits: ...


@runtime_checkable
class OrderedLogits(Protocol):
    """Logits of the m tokens that come after the first `known` in each sample's order, each as if it came next: from the
    known ones alone. Sample by sample, m for each, for every branch in turn; beyond the end of an order they mean nothing.

    Called with ever more known tokens of the same sequences, so that it may keep keys and values; the others' values mean
    nothing."""

    def __call__(
        self, tokens: Int[Tensor, "b t d"], order: Int[Tensor, "b t"], known: Sequence[int], m: int, branches: tuple[bool, ...]
    ) -> Logits: ...


@dataclass(frozen=True)
class GuidedLogits(Logits):
    """Float32 logits of two branches, the conditional one's first, combined with a scale for every place; or of one branch."""

    branches: Logits
    scales: Float[Tensor, " n"] | None

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.branches.sizes

    @property
    def independent(self) -> bool:
        return self.branches.independent

    def __call__(self, j: int, places: Int[Tensor, " s"], before: Int[Tensor, "s j"]) -> Float[Tensor, "s _k"]:
        if self.scales is None:
            return self.branches(j, places, before).float()
        ends = (places + len(self.scales), places)
        return self.branches.between(j, ends, self.scales[places, None], before)


def guide(
    logits: Callable[[tuple[bool, ...]], Logits], scales: list[float], positions: int, device: torch.device
) -> GuidedLogits:
    """Guided logits, one scale per sample of so many positions: a single branch where that is all that any sample asks for."""
    if all(scale == 1 for scale in scales) or all(scale == 0 for scale in scales):
        return GuidedLogits(logits((scales[0] == 1,)), None)
    weights = torch.tensor(scales, dtype=torch.float32, device=device).repeat_interleave(positions)
    return GuidedLogits(logits((True, False)), weights)
