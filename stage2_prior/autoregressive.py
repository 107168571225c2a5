"""The autoregressive prior: token after token in raster order, the class in front (LlamaGen, Sun et al. 2024).

With `raster_from` above 0 it learns random orders first and the raster order in the end, each place being told the position
of the token to predict (RAR, Yu et al. 2024, arXiv 2411.00776): so it learns to use what is on all sides. With random orders
to the end it samples in any order, several tokens at once (in the manner of RandAR, Pang et al. 2024, arXiv 2412.01827, and
ARPG, Li et al. 2025; those have places for instructions or queries, this prior's own tokens do that work).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  (a pipeline is loaded by what stands beside its class)
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.core.errors import UserError
from stage2_prior.codec import CodingModel, CodingOptions
from stage2_prior.decoding import Step, StepwiseTrunk, decode
from stage2_prior.heads import HeadLogits
from stage2_prior.prior import Mixture, Noise, Prior, resolve_shape
from stage2_prior.rows import first_marked
from stage2_prior.samplers import sample_autoregressive, sample_in_order
from stage2_prior.sampling import RASTER, ARSampling, Progress, Samples, SamplingOptions
from stage2_prior.transformer import Labels, take


class AutoregressivePrior(Prior):
    """Causal trunk: the class place predicts the first token, every token the next one.

    Args: sizes, scales, image_size: the TokenSpec. size, depth, width, heads: a name in SIZES, any number replaced.
    label_smoothing: of the loss, not of validation bits. class_dropout: share of the labels replaced by the null class,
    for guidance. dropout: of the blocks' branches. head: how tokens go in and logits come out (HEADS).
    code_dims: channels of the tokenizer's code vectors, where known.
    chained: an index is predicted from the indices before it in the same position too. random_until, raster_from: shares of
    the training; before the first all orders are random, after the second none, in between ever fewer (RAR: 0.5, 0.75).
    0, 0: raster order from the start, and no place is told its target.
    """

    options_type: ClassVar[type[SamplingOptions]] = ARSampling

    @register_to_config
    def __init__(
        self,
        sizes: list[int],
        scales: list[list[int]],
        image_size: list[int],
        num_classes: int,
        size: str = "nano",
        depth: int | None = None,
        width: int | None = None,
        heads: int | None = None,
        registers: int = 1,
        label_smoothing: float = 0.0,
        class_dropout: float = 0.1,
        dropout: float = 0.1,
        head: str = "tied",
        code_dims: list[int] | None = None,
        chained: bool = True,
        random_until: float = 0.0,
        raster_from: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= random_until <= raster_from <= 1:
            given = f"prior.random_until, prior.raster_from: {random_until}, {raster_from}"
            raise UserError(f"{given}; give 0 <= random_until <= raster_from <= 1")
        shape = resolve_shape(size, depth, width, heads)
        self._build(
            sizes,
            scales,
            image_size,
            num_classes,
            shape,
            causal=True,
            registers=registers,
            dropout=dropout,
            head=head,
            code_dims=code_dims,
            chained=chained,
            target_aware=raster_from > 0,
        )
        self.step: Step = decode

    def draw_noise(self, global_batch_size: int, generator: torch.Generator, progress: float = 1.0) -> Noise:
        """With random orders to be learnt, also the order of each sample's tokens: positions, first to last."""
        noise = self._common_noise(global_batch_size, generator)
        if self.config["raster_from"] == 0:
            return noise
        orders = torch.rand(global_batch_size, self.spec.t, generator=generator).argsort(dim=1)
        randomized = torch.rand(global_batch_size, generator=generator) < self.random_share(progress)
        return noise | {"order": torch.where(randomized[:, None], orders, torch.arange(self.spec.t))}

    def random_share(self, progress: float) -> float:
        """The share of the samples whose order is random when this share of the training is done."""
        start, end = self.config["random_until"], self.config["raster_from"]
        return float(progress < start) if start == end else min(max((end - progress) / (end - start), 0.0), 1.0)

    def forward(self, tokens: Int[Tensor, "b t d"], labels: Int[Tensor, " b"], noise: Noise) -> Float[Tensor, ""]:
        order = noise.get("order")
        if order is not None:
            tokens = tokens.gather(1, order[..., None].expand_as(tokens))
        features = self._features(tokens, self._dropped_labels(labels, noise), self._dropout_seeds(noise), order)
        return self.codes.loss(features.flatten(0, 1), tokens.flatten(0, 1), self.config["label_smoothing"])

    @torch.no_grad()
    def validation_bits(self, tokens: Int[Tensor, "b t d"], labels: Int[Tensor, " b"], noise: Noise) -> Float[Tensor, " b"]:
        """The exact negative log-likelihood in bits, in raster order; no noise enters."""
        return self.codes.bits(self._features(tokens, labels), tokens)

    @torch.no_grad()
    def sample(
        self,
        labels: Sequence[int | Mixture] | Int[Tensor, " b"],
        options: ARSampling,
        seeds: Sequence[int],
        given: Int[Tensor, "b t d"] | None = None,
        trace: bool = False,
        progress: Progress | None = None,
    ) -> Samples:
        """See `Prior.sample`. UserError, too, for options that go with another training than this prior's: several tokens at
        once and orders with random ones, `lookahead` with none in the end."""
        classes, given = self._request(labels, seeds, given)
        plain = ARSampling()
        if not self.any_order and (options.steps, options.order, options.schedule) != (None, RASTER, plain.schedule):
            learnt = f"random_until={self.config['random_until']}, raster_from={self.config['raster_from']}"
            asked = f"sampling.steps, order, schedule: {options.steps}, {options.order}, {options.schedule}"
            remedy = "give none of them, or train with random_until=1 raster_from=1"
            raise UserError(f"{asked}; this prior ended in raster order ({learnt}); {remedy}")
        if self.any_order and options.lookahead != plain.lookahead:
            asked = f"sampling.lookahead: {options.lookahead}; goes with priors that ended in raster order only"
            raise UserError(f"{asked}; leave it out, or give steps to draw several tokens at once")
        # where the guidance scale is 1 it is so at every step
        logits = StepwiseLogits(self, classes, (True,) if options.guidance_scale == 1 else (True, False))
        if self.any_order:
            return sample_in_order(logits, given, self.spec.scales, options, seeds, trace, progress)
        return sample_autoregressive(logits.causal, given, options, seeds, trace, progress)

    @property
    def any_order(self) -> bool:
        """Whether random orders were learnt to the end of the training, so that tokens may come in any."""
        return self.config["random_until"] == 1

    def compile_sampling(self, **options: Any) -> None:
        """From now on, single-token steps of sampling run as one compiled graph of fixed shapes, one per number of samples.

        `options` are torch.compile's; the default is a CUDA graph ("reduce-overhead"). No command calls it: a program that
        makes many images does (`generator.prior.compile_sampling()`). Meant for a GPU, where it has not been run or timed yet;
        on a CPU a compiled step has to do without packed matrices (RowMap), the greater part of its time.
        """
        chosen: dict[str, Any] = {"mode": "reduce-overhead", "fullgraph": True, "dynamic": False} | options
        self.step = torch.compile(decode, **chosen)

    @torch.no_grad()
    def coding_model(self, labels: Int[Tensor, " b"], options: CodingOptions) -> CodingModel:
        """Token after token in raster order: the message's length is the exact likelihood."""
        logits = StepwiseLogits(self, labels, (True,))
        groups = torch.arange(self.spec.t, device=self.device).split(1)
        return CodingModel(groups, lambda tokens, step: logits.causal(tokens, [step] * len(tokens), 1, (True,)))

    def _features(
        self,
        tokens: Int[Tensor, "b t d"],
        labels: Labels,
        seeds: Int[Tensor, " b"] | None = None,
        order: Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t f"]:
        """What predicts each of the tokens, which come in this order (default: raster)."""
        return self.trunk(self.codes.embed(tokens[:, :-1]), labels, seeds, order=order)


class StepwiseLogits:
    """Logits of the tokens that come next in each sample's order, keys and values kept (an `OrderedLogits`).

    The last known token is told its successor, as in training, and so predicts it. Copies of it, each told another of the
    tokens to come, predict those: a copy sees what the token sees, and itself, and the slot that its keys and values take is
    that of a token which will come and write over it. With no token known the class place is the last one.

    The branches share one storage and one pass as long as they have seen the same; one that was left out for some steps
    catches up in one pass.
    """

    def __init__(self, prior: AutoregressivePrior, labels: Labels, branches: tuple[bool, ...] = (True, False)) -> None:
        self.prior, self.labels = prior, prior._branch_labels(labels, branches)
        # one slot more than places: for what is worked out only because its neighbours in the batch are, and for a last token
        self.slots = prior.trunk.prefix + prior.spec.t
        self.trunk = StepwiseTrunk(prior.trunk, self.labels, self.slots, prior.step)
        self.maps = prior.codes.maps(packed=True)
        b = len(labels)
        self.rows = {branch: slice(i * b, (i + 1) * b) for i, branch in enumerate(branches)}
        self.seen = {branch: [-prior.trunk.prefix] * b for branch in branches}
        self.fed: dict[bool, Tensor] = {}

    def __call__(
        self, tokens: Int[Tensor, "b t d"], order: Int[Tensor, "b t"], known: Sequence[int], m: int, branches: tuple[bool, ...]
    ) -> HeadLogits:
        return self._logits(tokens, order, known, m, branches, 1)

    def causal(self, tokens: Int[Tensor, "b t d"], start: Sequence[int], m: int, branches: tuple[bool, ...]) -> HeadLogits:
        """Logits of tokens in raster order, each from all before it (a `CausalLogits`); what has changed is worked out anew."""
        fed = tokens.clone()
        for branch in branches:
            # nothing has been seen where nothing was fed
            same = first_marked((tokens != self.fed.get(branch, fed)).any(-1))
            kept = (min(s, n, first - 1) for s, n, first in zip(self.seen[branch], same, start, strict=True))
            self.seen[branch], self.fed[branch] = list(kept), fed
        raster = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        return self._logits(tokens, raster, [first + m - 1 for first in start], 1, branches, m)

    def _logits(
        self, tokens: Tensor, order: Tensor, known: Sequence[int], m: int, branches: tuple[bool, ...], answers: int
    ) -> HeadLogits:
        if branches == tuple(self.seen) and all(self.seen[branch] == self.seen[branches[0]] for branch in branches):
            features = self._extend(tokens, order, known, m, branches, answers)
        else:
            features = torch.cat([self._extend(tokens, order, known, m, (branch,), answers) for branch in branches])
        return self.prior.codes.logits(features, self.maps)

    def _extend(
        self, tokens: Tensor, order: Tensor, known: Sequence[int], m: int, branches: tuple[bool, ...], answers: int
    ) -> Tensor:
        """Features "r n f": of each sample's last `answers` known tokens, and of m - 1 copies of the very last."""
        trunk, device = self.prior.trunk, tokens.device
        rows = slice(None) if branches == tuple(self.seen) else self.rows[branches[0]]
        seen = [min(s, k - 1) for s, k in zip(self.seen[branches[0]], known, strict=True)]  # the last one answers, always
        first, ragged = min(seen) < 0, len({*zip(known, seen, strict=True)}) > 1
        few = slice(None) if ragged else slice(1)  # one row speaks for all where they are alike
        end = torch.tensor(known, device=device)[few, None]
        start = torch.tensor(seen, device=device)[few, None]
        new = max(k - s for k, s in zip(known, seen, strict=True))
        # places of tokens by their number in the order (below 0: registers, class), then those of the copies
        number = end - new + torch.arange(new, device=device)
        copy = end + torch.arange(m - 1, device=device)
        fresh = number >= start
        slots = torch.cat([torch.where(fresh, number + trunk.prefix, self.slots - 1), copy + trunk.prefix], dim=1)
        before = torch.cat([torch.where(fresh, number + trunk.prefix, 1), (end + trunk.prefix - 1).expand_as(copy)], dim=1)
        at = order.gather(1, number.clamp(0, order.shape[1] - 1).expand(len(order), -1))
        x = self.prior.codes.embed(take(tokens, at).clamp(min=0)) + F.embedding(at, trunk.positions)
        turns = at + trunk.prefix
        if first:
            prefix = (number + trunk.prefix).clamp(0, trunk.prefix - 1)
            ahead = trunk._prefix(self.labels[rows]).unflatten(0, (len(branches), -1))
            ahead = ahead.gather(2, prefix[None, ..., None].expand(*ahead.shape[:2], -1, ahead.shape[-1]))
            x = torch.where(number[..., None] < 0, ahead, x).flatten(0, 1)
            turns = torch.where(number < 0, prefix, turns)
        elif len(branches) > 1:
            x = x.repeat(len(branches), 1, 1)
        x = torch.cat([x, x[:, -1:].expand(-1, m - 1, -1)], dim=1)
        turns = torch.cat([turns, turns[:, -1:].expand(-1, m - 1)], dim=1)
        if trunk.targets is not None:
            told = torch.cat([number, copy], dim=1) + 1
            targets = F.embedding(order.gather(1, told.clamp(0, order.shape[1] - 1).expand(len(order), -1)), trunk.targets)
            x = x + (targets * (told >= 0)[..., None]).repeat(len(branches), 1, 1)
        slots = slots.clamp(max=self.slots - 1)
        if ragged:
            slots, before = (each.repeat(len(branches), 1) for each in (slots, before))
        last = self.slots if ragged else min(known[0] + trunk.prefix + m - 1, self.slots)
        features = self.trunk(x, turns.repeat(len(branches), 1), slots, before, last, rows)
        self.seen |= {branch: list(known) for branch in branches}
        return features[:, new - answers :]
