"""Next-scale prediction: all tokens of a scale at once, from all coarser scales (VAR, Tian et al. 2024, arXiv 2404.02905)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  (a pipeline is loaded by what stands beside its class)
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.core.errors import UserError
from stage2_prior.codec import CodingModel, CodingOptions
from stage2_prior.heads import HeadLogits
from stage2_prior.prior import Mixture, Noise, Prior, resolve_shape
from stage2_prior.rows import linear
from stage2_prior.samplers import sample_next_scale
from stage2_prior.sampling import NextScaleSampling, Progress, Samples, SamplingOptions
from stage2_prior.transformer import Labels


class NextScalePrior(Prior):
    """Causal from scale to scale: each place predicts its own token from the tokens of all coarser scales.

    The input of a place is the picture so far, as far as the prior knows it: the embeddings of all coarser scales, grown to
    the finest grid, summed, and averaged over the place's cell; to it come a learned vector of the scale and the positions.
    (A tokenizer's own sum may have more to it, such as multi_scale's convolutions; tokens are all that is needed here.)

    Args: sizes, scales, image_size: the TokenSpec. size, depth, width, heads: a name in SIZES, any number replaced.
    label_smoothing: of the loss, not of validation bits. class_dropout: share of the labels replaced by the null class,
    for guidance. dropout: of the blocks' branches. head: how tokens go in and logits come out (HEADS).
    code_dims: channels of the tokenizer's code vectors, where known.
    chained: an index is predicted from the indices before it in the same position too.
    Raises UserError for tokens of one scale, which would all be drawn independently of each other.
    """

    options_type: ClassVar[type[SamplingOptions]] = NextScaleSampling
    picture_so_far: Tensor
    scale_numbers: Tensor

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
    ) -> None:
        super().__init__()
        if len(scales) < 2:
            h, w = scales[0]
            raise UserError(
                f"prior.name: next-scale prediction needs tokens of several scales, and these have one of {h}x{w}; "
                "train a tokenizer with quantizer=multi_scale, or take prior=maskgit or prior=ar"
            )
        shape = resolve_shape(size, depth, width, heads)
        counts = tuple(h * w for h, w in scales)
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
            groups=counts,
        )
        self.ends = tuple(accumulate(counts))
        self.scale_vectors = nn.Parameter(0.02 * torch.randn(len(scales), shape.width))
        self.register_buffer("picture_so_far", picture_so_far(self.spec.scales), persistent=False)
        numbers = [number for number, count in enumerate(counts) for _ in range(count)]
        self.register_buffer("scale_numbers", torch.tensor(numbers), persistent=False)

    def draw_noise(self, global_batch_size: int, generator: torch.Generator, progress: float = 1.0) -> Noise:
        return self._common_noise(global_batch_size, generator)

    def forward(self, tokens: Int[Tensor, "b t d"], labels: Int[Tensor, " b"], noise: Noise) -> Float[Tensor, ""]:
        features = self._features(tokens, self._dropped_labels(labels, noise), self._dropout_seeds(noise))
        return self.codes.loss(features.flatten(0, 1), tokens.flatten(0, 1), self.config["label_smoothing"])

    @torch.no_grad()
    def validation_bits(self, tokens: Int[Tensor, "b t d"], labels: Int[Tensor, " b"], noise: Noise) -> Float[Tensor, " b"]:
        """The exact negative log-likelihood in bits: given the coarser scales, the tokens of a scale are independent."""
        return self.codes.bits(self._features(tokens, labels), tokens)

    @torch.no_grad()
    def sample(
        self,
        labels: Sequence[int | Mixture] | Int[Tensor, " b"],
        options: NextScaleSampling,
        seeds: Sequence[int],
        given: Int[Tensor, "b t d"] | None = None,
        trace: bool = False,
        progress: Progress | None = None,
    ) -> Samples:
        classes, given = self._request(labels, seeds, given)
        return sample_next_scale(CachedLogits(self, classes), given, self.spec.scales, options, seeds, trace, progress)

    @torch.no_grad()
    def coding_model(self, labels: Int[Tensor, " b"], options: CodingOptions) -> CodingModel:
        """Scale after scale: the message's length is the exact likelihood."""
        logits = CachedLogits(self, labels)
        starts = (0, *self.ends)
        groups = [torch.arange(start, end, device=self.device) for start, end in pairwise(starts)]
        return CodingModel(groups, lambda tokens, step: logits(tokens[:, : starts[step]], (True,)))

    def inputs(self, tokens: Int[Tensor, "b i d"], seen: int = 0) -> Float[Tensor, "b n f"]:
        """What goes into the places after the first `seen`, up to the end of the scale that follows these tokens."""
        i = tokens.shape[1]
        end = next(end for end in self.ends if end > i)
        scales = F.embedding(self.scale_numbers[seen:end], self.scale_vectors)
        if i == 0:
            return scales.expand(len(tokens), -1, -1)
        embedded = self.codes.embed(tokens).transpose(1, 2)
        return scales + linear(embedded, self.picture_so_far[seen:end, :i]).transpose(1, 2)

    def _features(
        self, tokens: Int[Tensor, "b t d"], labels: Labels, seeds: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b t f"]:
        """What predicts each of the tokens; those of the finest scale are not looked at."""
        return self.trunk(self.inputs(tokens[:, : self.ends[-2]]), labels, seeds)[:, 1:]


class CachedLogits:
    """Logits of what comes next, keys and values kept: each call feeds what a branch has not seen yet.

    The conditional and the unconditional branch share one storage and one pass while they are equally long; a branch that
    was left out for some steps, its guidance scale being 1 or 0, catches up in one pass when it is needed again.
    """

    def __init__(self, prior: NextScalePrior, labels: Labels) -> None:
        self.prior, self.labels = prior, prior._branch_labels(labels, (True, False))
        self.modulation = prior.trunk.modulate(self.labels)
        self.cache = prior.trunk.empty_cache(self.modulation, prior.trunk.prefix + prior.spec.t)
        self.rows = {True: slice(0, len(labels)), False: slice(len(labels), None)}
        self.lengths = {True: 0, False: 0}

    def __call__(self, tokens: Int[Tensor, "b i d"], branches: tuple[bool, ...]) -> HeadLogits:
        if len(branches) == 2 and self.lengths[True] == self.lengths[False]:
            features = self._extend(tokens.repeat(2, 1, 1), slice(None), branches)
        else:
            features = torch.cat([self._extend(tokens, self.rows[branch], (branch,)) for branch in branches])
        return self.prior.codes.logits(features)

    def _extend(self, tokens: Tensor, rows: slice, branches: tuple[bool, ...]) -> Tensor:
        """Features of the places that stand for tokens to come."""
        length = self.lengths[branches[0]]
        seen = max(length - self.prior.trunk.prefix, 0)
        x = self.prior.inputs(tokens, seen)
        places = seen + x.shape[1]
        features = self.prior.trunk.extend(x, self.labels[rows], self.modulation[rows], self.cache.part(rows, length))
        self.lengths |= dict.fromkeys(branches, self.prior.trunk.prefix + places)
        return features[:, tokens.shape[1] - places :]


def picture_so_far(scales: tuple[tuple[int, int], ...]) -> Float[Tensor, "t t"]:
    """The share of each token (column) in the input of each place (row): 0 unless the token's scale is coarser.

    A scale grows to the finest grid (bicubic) and is averaged over the cells of the finer ones (area), as VAR does it.
    """
    rows = []
    for number, scale in enumerate(scales):
        parts = []
        for coarser, (h, w) in enumerate(scales):
            if coarser < number:
                unit = torch.eye(h * w, dtype=torch.float64).view(h * w, 1, h, w)
                grown = F.interpolate(unit, size=scales[-1], mode="bicubic")
                parts.append(F.adaptive_avg_pool2d(grown, scale).flatten(1).T)
            else:
                parts.append(torch.zeros(scale[0] * scale[1], h * w, dtype=torch.float64))
        rows.append(torch.cat(parts, dim=1))
    return torch.cat(rows).float()
