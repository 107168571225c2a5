"""A lossless codec of token grids: a range coder, that of `constriction` (Bamler 2022), under a prior's probabilities.

A model says which positions it codes in each step and gives logits for them once the tokens of the steps before are known.
Both directions run the same lines, `_run`, with the same shapes and the same known tokens, and whatever is unknown to the
decoder is 0 for the encoder too. A message can be read only where these logits come out bit for bit as they did when it was
written: same weights, same tokens in the same batch, same kind of device, same libraries. No float arithmetic promises more
than that, so whoever stores messages stores a checksum of the tokens beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import constriction
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.core.errors import UserError
from pipeline.core.rng import generator
from stage2_prior.logits import Logits
from stage2_prior.orders import PLANNED_ORDERS
from stage2_prior.schedules import MASK_SCHEDULES, reveal_counts

HELD = 1 << 22  # logits held at once: 16 MB. It decides which tokens follow which, so it is part of the format
DIGIT = 256  # the largest alphabet that is coded in one digit
RANGE_CODER: Any = constriction.stream  # pyright: ignore[reportAttributeAccessIssue]
# probabilities are rounded to multiples of 2^-24, none below one; `perfect` would round optimally and far more slowly
FAMILY = RANGE_CODER.model.Categorical(perfect=False)
Coder = Callable[[Float[Tensor, "s k"], Int[Tensor, " s"]], Int[Tensor, " s"]]


class DamagedMessage(Exception):
    """A message that cannot have been written under these probabilities."""


@dataclass(frozen=True)
class CodingModel:
    """What a message of b images is coded under.

    groups: the positions that each step codes, every position in one step. logits(tokens, step): of the positions of a step,
    image by image, given "b t d" tokens that hold those of earlier steps (0 elsewhere). Steps are asked for in order, once.
    """

    groups: Sequence[Int[Tensor, " m"]]
    logits: Callable[[Int[Tensor, "b t d"], int], Logits]


@dataclass(frozen=True, kw_only=True)
class CodingOptions:
    """What may be chosen in coding: nothing where a prior has one order."""


@dataclass(frozen=True, kw_only=True)
class MaskGITCoding(CodingOptions):
    """MaskGIT: tokens are coded in an `order` that does not look at them (PLANNED_ORDERS, drawn from `seed`).

    The tokens of a step are coded as if they were independent, given those before. So fewer `steps`, whose sizes `schedule`
    sets, are faster and cost bits; with as many as there are tokens, or more, each is coded alone.
    """

    order: str = "halton"
    steps: int = 16
    schedule: str = "arccos"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, table in (("order", self.order, PLANNED_ORDERS), ("schedule", self.schedule, MASK_SCHEDULES)):
            if value not in table:
                raise UserError(f"coding.{name}: {value}; choose one of {', '.join(table)}")
        if self.steps < 1:
            raise UserError(f"coding.steps: {self.steps}; give 1 or more")

    def groups(self, scales: tuple[tuple[int, int], ...]) -> list[Int[Tensor, " m"]]:
        """The positions of each step."""
        t = sum(h * w for h, w in scales)
        uniform = torch.rand(1, t, generator=generator("coding order", self.seed))
        order = PLANNED_ORDERS[self.order](scales, uniform)[0].argsort(stable=True)
        return list(order.split(list(reveal_counts(t, self.steps, self.schedule))))


@dataclass(frozen=True)
class Message:
    """A coded batch, and what it would take at least: the model's -log2 probability of each image's tokens."""

    stream: bytes
    bits: Float[Tensor, " b"]


@torch.no_grad()
def encode(model: CodingModel, tokens: Int[Tensor, "b t d"]) -> Message:
    """The message of a batch of token grids: whole 32-bit words, at most two more than `bits` and the rounding ask for."""
    encoder = RANGE_CODER.queue.RangeEncoder()

    def write(probabilities: Tensor, symbols: Tensor) -> Tensor:
        encoder.encode(symbols.cpu().numpy().astype(np.int32), FAMILY, probabilities.cpu().numpy())
        return symbols

    _, bits = _run(model, write, tokens)
    return Message(encoder.get_compressed().astype("<u4").tobytes(), bits)


@torch.no_grad()
def decode(model: CodingModel, stream: bytes, b: int, d: int) -> Int[Tensor, "b t d"]:
    """The tokens of a message. Raises DamagedMessage where the stream cannot be one; not every damage shows itself."""
    if len(stream) % 4:
        raise DamagedMessage("it does not consist of 32-bit words")
    decoder = RANGE_CODER.queue.RangeDecoder(np.frombuffer(stream, "<u4").astype(np.uint32))

    def read(probabilities: Tensor, _: Tensor) -> Tensor:
        try:
            symbols = decoder.decode(FAMILY, probabilities.cpu().numpy())
        except AssertionError:  # how constriction says it
            raise DamagedMessage("it holds no symbol where one is due") from None
        return torch.from_numpy(symbols).to(probabilities.device).long()

    t, device = sum(map(len, model.groups)), model.groups[0].device
    tokens, _ = _run(model, read, torch.zeros(b, t, d, dtype=torch.int64, device=device))
    if not decoder.maybe_exhausted():
        raise DamagedMessage("something follows its last token")
    return tokens


def _run(model: CodingModel, coder: Coder, source: Int[Tensor, "b t d"]) -> tuple[Int[Tensor, "b t d"], Float[Tensor, " b"]]:
    """All tokens in coding order through the coder, which returns what it is given (`source`) or what it reads.

    Step by step; within a step portion by portion of "b m" places, and there index after index.
    """
    (b, _, d), device = source.shape, source.device
    tokens, bits = torch.zeros_like(source), torch.zeros(b, dtype=torch.float64, device=device)
    for step, positions in enumerate(model.groups if b else ()):
        logits = model.logits(tokens, step)
        known = source[:, positions].reshape(-1, d)
        places = torch.arange(len(known), device=device)
        for part in places.split(max(HELD // max(logits.sizes), 1)):
            values = known.new_empty(len(part), 0)
            for j, size in enumerate(logits.sizes):
                symbols, nats = _code(coder, logits(j, part, values).float(), known[part, j])
                if (symbols >= size).any():
                    raise DamagedMessage(f"it holds a token outside {logits.sizes}")
                values = torch.cat([values, symbols[:, None]], dim=1)
                bits.index_add_(0, part // len(positions), nats / math.log(2))
            known[part] = values
        tokens[:, positions] = known.view(b, -1, d)
    return tokens, bits


def _code(
    coder: Coder, logits: Float[Tensor, "s k"], symbols: Int[Tensor, " s"]
) -> tuple[Int[Tensor, " s"], Float[Tensor, " s"]]:
    """One symbol per row: itself and its -log probability (nats, float64).

    A large alphabet takes two digits of about sqrt(k) values, so that neither rounding the probabilities nor searching
    them grows with k.
    """
    k = logits.shape[1]
    base = k if k <= DIGIT else 1 << math.ceil(math.log2(k) / 2)
    blocks = F.pad(logits, (0, -k % base), value=-torch.inf).unflatten(1, (-1, base))
    weights = blocks.logsumexp(2)
    total = weights.logsumexp(1)
    if not total.isfinite().all():
        raise UserError("codec: the prior's logits are not finite; train it again")
    first = _digit(coder, weights, symbols // base)
    block = blocks[torch.arange(len(blocks), device=blocks.device), first]
    second = _digit(coder, block, symbols % base)
    own = block.gather(1, second[:, None]).squeeze(1)
    return first * base + second, total.double() - own.double()


def _digit(coder: Coder, logits: Float[Tensor, "s k"], symbols: Int[Tensor, " s"]) -> Int[Tensor, " s"]:
    if logits.shape[1] == 1:
        return torch.zeros_like(symbols)
    # a block in which everything is impossible: any distribution will do
    return coder(logits.softmax(1).nan_to_num(nan=1.0), symbols)
