"""MaskGIT: predict all masked tokens at once, seen from all visible ones (Chang et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  (a pipeline is loaded by what stands beside its class)
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pipeline.core.errors import UserError
from stage2_prior.codec import CodingModel, CodingOptions, MaskGITCoding
from stage2_prior.heads import HeadLogits
from stage2_prior.prior import Mixture, Noise, Prior, resolve_shape
from stage2_prior.samplers import sample_maskgit
from stage2_prior.sampling import MaskGITSampling, Progress, Samples, SamplingOptions
from stage2_prior.schedules import MASK_SCHEDULES, mask_counts
from stage2_prior.transformer import Labels, take


class MaskGITPrior(Prior):
    """Bidirectional trunk, loss on masked positions only.

    Args: sizes, scales, image_size: the TokenSpec. size, depth, width, heads: a name in SIZES, any number replaced.
    schedule: of the masked share in training (MASK_SCHEDULES). label_smoothing: of the loss, not of validation bits.
    class_dropout: share of the labels replaced by the null class, for guidance. dropout: of the blocks' branches.
    head: how tokens go in and logits come out (HEADS). code_dims: channels of the tokenizer's code vectors, where known.
    chained: an index is predicted from the indices before it in the same position too.
    """

    options_type: ClassVar[type[SamplingOptions]] = MaskGITSampling
    coding_type: ClassVar[type[CodingOptions]] = MaskGITCoding

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
        schedule: str = "arccos",
        label_smoothing: float = 0.1,
        class_dropout: float = 0.1,
        dropout: float = 0.1,
        head: str = "tied",
        code_dims: list[int] | None = None,
        chained: bool = True,
    ) -> None:
        super().__init__()
        if schedule not in MASK_SCHEDULES:
            raise UserError(f"prior.schedule: {schedule}; choose one of {', '.join(MASK_SCHEDULES)}")
        shape = resolve_shape(size, depth, width, heads)
        self._build(
            sizes,
            scales,
            image_size,
            num_classes,
            shape,
            causal=False,
            registers=registers,
            dropout=dropout,
            head=head,
            code_dims=code_dims,
            chained=chained,
        )
        self.mask = nn.Parameter(0.02 * torch.randn(shape.width))

    def draw_noise(self, global_batch_size: int, generator: torch.Generator, progress: float = 1.0) -> Noise:
        """Masked counts from one stratified uniform per sample, and priorities: the smallest ones are masked."""
        offsets = (torch.arange(global_batch_size) + torch.rand((), generator=generator)) / global_batch_size
        level = offsets.frac()[torch.randperm(global_batch_size, generator=generator)]
        return {
            "level": level,
            "count": mask_counts(level, self.spec.t, self.config["schedule"]),
            "priority": torch.rand(global_batch_size, self.spec.t, generator=generator),
            **self._common_noise(global_batch_size, generator),
        }

    def loss_count(self, noise: Noise) -> int:
        """Masked positions of these rows, times the indices that each has."""
        return int(noise["count"].sum()) * self.spec.d

    def forward(self, tokens: Int[Tensor, "b t d"], labels: Int[Tensor, " b"], noise: Noise) -> Float[Tensor, ""]:
        masked = smallest(noise["priority"], noise["count"])
        features = self._features(tokens, masked, self._dropped_labels(labels, noise), self._dropout_seeds(noise))
        return self.codes.loss(features[masked], tokens[masked], self.config["label_smoothing"])

    @torch.no_grad()
    def validation_bits(self, tokens: Int[Tensor, "b t d"], labels: Int[Tensor, " b"], noise: Noise) -> Float[Tensor, " b"]:
        """An unbiased estimate of the order-agnostic bound (Uria et al. 2014, Hoogeboom et al. 2022), in bits.

        -log p(x) <= t E[1/n sum over masked of -log p(x_i | visible)], n uniform on 1 .. t: over many rows the mean is
        the bound; one row's estimate is noisy, and the same noise gives the same number.
        """
        t = self.spec.t
        counts = (noise["level"].double() * t).long().clamp(max=t - 1) + 1
        masked = smallest(noise["priority"], counts)
        nats = self.codes.nats(self._features(tokens, masked, labels)[masked], tokens[masked])
        return order_agnostic_bits(nats, masked)

    @torch.no_grad()
    def sample(
        self,
        labels: Sequence[int | Mixture] | Int[Tensor, " b"],
        options: MaskGITSampling,
        seeds: Sequence[int],
        given: Int[Tensor, "b t d"] | None = None,
        trace: bool = False,
        progress: Progress | None = None,
    ) -> Samples:
        classes, given = self._request(labels, seeds, given)
        return sample_maskgit(self._masked_logits(classes), given, self.spec.scales, options, seeds, trace, progress)

    @torch.no_grad()
    def coding_model(self, labels: Int[Tensor, " b"], options: CodingOptions) -> CodingModel:
        """Group after group in an order that is the same for all images, each token given all those of earlier groups."""
        assert isinstance(options, MaskGITCoding)
        groups = [group.to(self.device) for group in options.groups(self.spec.scales)]
        given = self._masked_logits(labels)
        b = len(labels)

        def logits(tokens: Tensor, step: int) -> HeadLogits:
            masked = torch.ones(self.spec.t, dtype=torch.bool, device=self.device)
            masked[torch.cat([*groups[:step], groups[step][:0]])] = False
            rows = torch.arange(b, device=self.device)
            return given(tokens, masked.expand(b, -1), groups[step].expand(b, -1), rows, (True,))

        return CodingModel(groups, logits)

    def _masked_logits(self, classes: Labels) -> Callable[..., HeadLogits]:
        """The prior as MaskedLogits: of images of these classes."""

        def logits(tokens: Tensor, masked: Tensor, positions: Tensor, rows: Tensor, branches: tuple[bool, ...]) -> HeadLogits:
            labels = self._branch_labels(classes[rows], branches)
            n = len(branches)
            if masked.all():  # nothing is known yet: one pass serves all samples of a class
                labels, samples = labels.unique(return_inverse=True, dim=0)
                everywhere = masked[:1].expand(len(labels), -1)
                features = self._features(tokens[:1].expand(len(labels), -1, -1), everywhere, labels)
                features = take(features[samples], positions.repeat(n, 1))
            else:
                features = self._features(tokens.repeat(n, 1, 1), masked.repeat(n, 1), labels, queries=positions.repeat(n, 1))
            return self.codes.logits(features)

        return logits

    def _features(
        self,
        tokens: Int[Tensor, "b t d"],
        masked: Bool[Tensor, "b t"],
        labels: Labels,
        seeds: Int[Tensor, " b"] | None = None,
        queries: Int[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b m f"]:
        """Features of all t tokens, or only of those that `queries` names."""
        x = self.codes.embed(tokens.masked_fill(masked[..., None], 0))
        x = torch.where(masked[..., None], self.mask, x)
        if queries is None:
            return self.trunk(x, labels, seeds)[:, 1:]
        return self.trunk(x, labels, seeds, queries + 1)


def smallest(priority: Float[Tensor, "b t"], count: Int[Tensor, " b"]) -> Bool[Tensor, "b t"]:
    """Marks the `count` smallest of every row, exactly, ties or not."""
    return priority.argsort(dim=1).argsort(dim=1) < count[:, None]


def order_agnostic_bits(nats: Float[Tensor, " m"], masked: Bool[Tensor, "b t"]) -> Float[Tensor, " b"]:
    """t / n times the sum over the n masked positions of each image, in bits; `nats`: theirs, row by row."""
    sums = torch.zeros(len(masked), dtype=torch.float64, device=nats.device)
    sums = sums.index_add(0, masked.nonzero()[:, 0], nats.double())
    return (sums * masked.shape[1] / masked.sum(1) / math.log(2)).float()
