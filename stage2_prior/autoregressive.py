"""The autoregressive prior: token after token in raster order, the class in front (LlamaGen, Sun et al. 2024).

With `raster_from` above 0 it learns random orders first and the raster order in the end, each place being told the position
of the token to predict (RAR, Yu et al. 2024, arXiv 2411.00776): so it learns to use what is on all sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  (a pipeline is loaded by what stands beside its class)
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.core.errors import UserError
from pipeline.core.token_spec import TokenSpec
from stage2_prior.codec import CodingModel, CodingOptions
from stage2_prior.heads import Head, HeadLogits
from stage2_prior.prior import Mixture, Noise, Prior, resolve_shape
from stage2_prior.sampling import ARSampling, Progress, Samples, SamplingOptions, sample_autoregressive
from stage2_prior.transformer import Labels, Transformer


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

    def loss_count(self, noise: Noise) -> int:
        """Every position is scored, with all of its indices."""
        return len(noise["class_drop"]) * self.spec.t * self.spec.d

    def forward(self, tokens: Int[Tensor, "b t d"], labels: Int[Tensor, " b"], noise: Noise) -> Float[Tensor, ""]:
        order = noise.get("order")
        if order is not None:
            tokens = tokens.gather(1, order[..., None].expand_as(tokens))
        features = self._features(tokens, self._dropped_labels(labels, noise), self._dropout_seeds(noise), order)
        return self.codes.loss(features.flatten(0, 1), tokens.flatten(0, 1), self.config["label_smoothing"])

    @torch.no_grad()
    def validation_bits(self, tokens: Int[Tensor, "b t d"], labels: Int[Tensor, " b"], noise: Noise) -> Float[Tensor, " b"]:
        """The exact negative log-likelihood in bits, in raster order; no noise enters."""
        nats = self.codes.nats(self._features(tokens, labels).flatten(0, 1), tokens.flatten(0, 1))
        return (nats.double().view(len(tokens), -1).sum(1) / math.log(2)).float()

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
        classes, given = self._request(labels, seeds, given)
        return sample_autoregressive(CachedLogits(self, classes), given, options, seeds, trace, progress)

    def coding_model(self, labels: Int[Tensor, " b"], options: CodingOptions) -> CodingModel:
        """Token after token in raster order: the message's length is the exact likelihood."""
        logits = CachedLogits(self, labels)
        groups = torch.arange(self.spec.t, device=self.device).split(1)
        return CodingModel(groups, lambda tokens, step: logits(tokens[:, :step], (True,)))

    def inputs(self, tokens: Int[Tensor, "b i d"], seen: int = 0) -> Float[Tensor, "b n f"]:
        """What goes into the places of the tokens after the first `seen`."""
        return self.codes.embed(tokens[:, seen:])

    def _features(
        self,
        tokens: Int[Tensor, "b t d"],
        labels: Labels,
        seeds: Int[Tensor, " b"] | None = None,
        order: Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t f"]:
        """What predicts each of the tokens, which come in this order (default: raster)."""
        return self.trunk(self.inputs(tokens[:, :-1]), labels, seeds, order=order)


class SequentialPrior(Protocol):
    """A prior whose places have one order and see none after them, so that keys and values can be kept.

    A place holds a token and predicts the next one, or it stands for a token that is still to come and predicts that.
    """

    trunk: Transformer
    codes: Head

    @property
    def spec(self) -> TokenSpec: ...

    def inputs(self, tokens: Int[Tensor, "b i d"], seen: int = 0) -> Float[Tensor, "b n f"]:
        """What goes into all places that can be worked out of these tokens, after the first `seen`."""
        ...

    def _branch_labels(self, labels: Tensor, branches: tuple[bool, ...]) -> Tensor: ...


class CachedLogits:
    """Logits of what comes next, keys and values kept: each call feeds what a branch has not seen yet.

    The conditional and the unconditional branch share one storage and one pass while they are equally long; a branch that
    was left out for some steps, its guidance scale being 1 or 0, catches up in one pass when it is needed again.
    """

    def __init__(self, prior: SequentialPrior, labels: Labels) -> None:
        self.prior, self.labels = prior, prior._branch_labels(labels, (True, False))
        self.modulation = prior.trunk.modulate(self.labels)
        self.cache = prior.trunk.empty_cache(self.modulation, prior.trunk.prefix + prior.spec.t, prior.trunk.shape.depth)
        self.rows = {True: slice(0, len(labels)), False: slice(len(labels), None)}
        self.lengths = {True: 0, False: 0}

    def __call__(self, tokens: Int[Tensor, "b i d"], branches: tuple[bool, ...]) -> HeadLogits:
        if len(branches) == 2 and self.lengths[True] == self.lengths[False]:
            features = self._extend(tokens.repeat(2, 1, 1), slice(None), branches)
        else:
            features = torch.cat([self._extend(tokens, self.rows[branch], (branch,)) for branch in branches])
        return self.prior.codes.logits(features)

    def _extend(self, tokens: Tensor, rows: slice, branches: tuple[bool, ...]) -> Tensor:
        """Features of the places that stand for tokens to come, or of the last place if there are none."""
        length = self.lengths[branches[0]]
        seen = max(length - self.prior.trunk.prefix, 0)
        x = self.prior.inputs(tokens, seen)
        places = seen + x.shape[1]
        features = self.prior.trunk.extend(x, self.labels[rows], self.modulation[rows], self.cache.part(rows, length))
        self.lengths |= dict.fromkeys(branches, self.prior.trunk.prefix + places)
        return features[:, -max(places - tokens.shape[1], 1) :]
