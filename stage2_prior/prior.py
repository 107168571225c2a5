"""What a prior is: a model of token grids, one class label per image, that knows a TokenSpec and no tokenizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.core.config import did_you_mean, require_limits
from pipeline.core.errors import UserError
from pipeline.core.token_spec import TokenSpec
from stage2_prior.codec import CodingModel, CodingOptions
from stage2_prior.heads import build_head
from stage2_prior.sampling import UNKNOWN, Progress, Samples, SamplingOptions
from stage2_prior.transformer import SIZES, Labels, Shape, Transformer, between

Noise = dict[str, Tensor]


class Mixture(NamedTuple):
    """A class on the way from one to another: weight 0 is the first itself, 1 the second.

    A prior wants their numbers; whoever knows the names of classes may put names in first.
    """

    first: int | str
    second: int | str
    weight: float


class Prior(ModelMixin, ConfigMixin, ABC):
    """The interface of all priors: a loss in training, bits in validation, tokens in sampling.

    Everything random in the loss comes in with `noise`, drawn for the global batch and handed out by rows; the loss is a sum
    over scored positions, to be divided by `loss_count` of the global noise. So the split of a batch over processes and
    accumulation steps changes nothing but the order of a sum.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["Block"]
    options_type: ClassVar[type[SamplingOptions]]
    coding_type: ClassVar[type[CodingOptions]] = CodingOptions

    def _build(
        self,
        sizes: Sequence[int],
        scales: Sequence[Sequence[int]],
        image_size: Sequence[int],
        num_classes: int,
        shape: Shape,
        *,
        causal: bool,
        registers: int,
        dropout: float,
        head: str,
        code_dims: Sequence[int] | None,
        chained: bool,
        target_aware: bool = False,
        groups: tuple[int, ...] = (),
    ) -> None:
        require_limits("prior", registers=(registers, 0, 1024), num_classes=(num_classes, 1, 2**24))
        values = {"sizes": list(sizes), "scales": [list(scale) for scale in scales], "image_size": list(image_size)}
        self.spec = TokenSpec.from_dict(values)
        self.trunk = Transformer(self.spec.scales, num_classes, shape, causal, registers, dropout, target_aware, groups)
        self.codes = build_head(head, self.spec.sizes, shape.width, code_dims, chained)

    @abstractmethod
    def draw_noise(self, global_batch_size: int, generator: torch.Generator, progress: float = 1.0) -> Noise:
        """Whatever the loss of a global batch needs, on the CPU: tensors whose rows are the samples.

        `progress`: the share of the training that is done.
        """

    def loss_count(self, noise: Noise) -> int:
        """How many cross-entropies the loss of these rows sums: every position's, with all of its indices."""
        return len(noise["class_drop"]) * self.spec.t * self.spec.d

    @abstractmethod
    def forward(self, tokens: Int[Tensor, "b t d"], labels: Int[Tensor, " b"], noise: Noise) -> Float[Tensor, ""]:
        """The SUM of the cross-entropies (nats, label smoothing included) over the scored positions of these rows."""

    @abstractmethod
    def validation_bits(self, tokens: Int[Tensor, "b t d"], labels: Int[Tensor, " b"], noise: Noise) -> Float[Tensor, " b"]:
        """Bits of each image under the model, no smoothing, no dropout, labels never dropped."""

    @abstractmethod
    def sample(
        self,
        labels: Sequence[int | Mixture] | Int[Tensor, " b"],
        options: Any,
        seeds: Sequence[int],
        given: Int[Tensor, "b t d"] | None = None,
        trace: bool = False,
        progress: Progress | None = None,
    ) -> Samples:
        """Tokens of one image per label and seed; `given` holds tokens to keep, and UNKNOWN (-1) where to sample.

        Raises UserError for a label outside the classes, or tokens that are not this prior's.
        """

    def coding_model(self, labels: Int[Tensor, " b"], options: CodingOptions) -> CodingModel:
        """What the codec codes a batch of images of these labels under, once; the null class is the label `num_classes`.

        Raises UserError where this kind of prior has no codec.
        """
        raise UserError(f"{type(self).__name__}: no codec for this kind of prior; use an autoregressive one or MaskGIT")

    def _common_noise(self, batch_size: int, generator: torch.Generator) -> Noise:
        return {
            "class_drop": torch.rand(batch_size, generator=generator),
            "dropout": torch.randint(-(2**31), 2**31, (batch_size,), generator=generator),
        }

    def _dropped_labels(self, labels: Tensor, noise: Noise) -> Tensor:
        return labels.masked_fill(noise["class_drop"] < self.config["class_dropout"], self.config["num_classes"])

    def _dropout_seeds(self, noise: Noise) -> Tensor | None:
        return noise["dropout"] if self.training and self.config["dropout"] > 0 else None

    def _branch_labels(self, labels: Labels, branches: tuple[bool, ...]) -> Float[Tensor, "b2 f"]:
        """The class vectors of each branch in turn: the true ones where it is conditional, the null class where not."""
        classes = self.trunk.class_vectors(labels)
        null = self.trunk.classes[-1].expand_as(classes)
        return torch.cat([classes if conditional else null for conditional in branches])

    def _request(
        self, labels: Sequence[int | Mixture] | Int[Tensor, " b"], seeds: Sequence[int], given: Int[Tensor, "b t d"] | None
    ) -> tuple[Float[Tensor, "b f"], Int[Tensor, "b t d"]]:
        """Class vectors and given tokens of a sampling request, checked, on the model's device."""
        classes = self._class_vectors(labels.tolist() if isinstance(labels, Tensor) else labels)
        if len(classes) != len(seeds):
            raise UserError(f"sample: {len(classes)} labels and {len(seeds)} seeds; give one seed for every label")
        shape = (len(classes), self.spec.t, self.spec.d)
        if given is None:
            return classes, torch.full(shape, UNKNOWN, device=self.device)
        if tuple(given.shape) != shape:
            raise UserError(f"sample: given tokens of shape {tuple(given.shape)}; this prior and request need {shape}")
        if given.is_floating_point():
            raise UserError(f"sample: given tokens of {given.dtype}; give whole numbers")
        given = given.to(self.device).long()
        sizes = torch.tensor(self.spec.sizes, device=self.device)
        unknown = given == UNKNOWN
        if ((given < UNKNOWN) | (given >= sizes)).any():
            raise UserError(f"sample: a given token outside {list(self.spec.sizes)}; use -1 for the tokens to sample")
        if (unknown.any(-1) != unknown.all(-1)).any():
            raise UserError("sample: a position that is given in part; give all of its indices, or -1 in all of them")
        return classes, given

    def _class_vectors(self, labels: Sequence[int | Mixture]) -> Float[Tensor, "b f"]:
        """The vector of every class, or of what stands between two; a class itself is both ends of a mixture."""
        if any(isinstance(label, float) and label != int(label) for label in labels):
            raise UserError(f"sample: class labels {list(labels)[:4]}; give whole numbers, or a Mixture of two")
        mixtures = [label if isinstance(label, Mixture) else Mixture(int(label), int(label), 0.0) for label in labels]
        for mixture in mixtures:
            for label in map(int, mixture[:2]):
                if not 0 <= label < self.config["num_classes"]:
                    raise UserError(f"sample: class {label}; give a class from 0 to {self.config['num_classes'] - 1}")
            if not 0 <= mixture.weight <= 1:
                raise UserError(f"sample: weight {mixture.weight} of a mixture of classes; give a share from 0 to 1")
        table = self.trunk.classes
        first, second = (torch.tensor([int(m[end]) for m in mixtures], dtype=torch.long, device=table.device) for end in (0, 1))
        return between(table[first], table[second], torch.tensor([m.weight for m in mixtures], device=table.device))


def resolve_shape(size: str, depth: int | None, width: int | None, heads: int | None) -> Shape:
    """The shape of a named size, any of its numbers replaced.

    Raises UserError for an unknown name, a number that no trunk has, or a width that the heads and the rotary positions
    cannot divide.
    """
    if size not in SIZES:
        raise UserError(f"prior.size: {size}; {did_you_mean(size, SIZES)}")
    named = SIZES[size]
    shape = Shape(depth or named.depth, width or named.width, heads or named.heads)
    require_limits("prior", depth=(shape.depth, 1, 1000), width=(shape.width, 1, 2**16), heads=(shape.heads, 1, 1024))
    if shape.width % (4 * shape.heads):
        raise UserError(f"prior.width: {shape.width}; with {shape.heads} heads give a multiple of {4 * shape.heads}")
    return shape
