"""The loss of a tokenizer on a global batch, whatever the number of processes and micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.core.perceptual import Perceptual
from stage1_tokenizer.guidance import VisionGuide
from stage1_tokenizer.losses import PictureLoss, picture_loss
from stage1_tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Objective:
    """`loss` to differentiate; `terms` to report; what the discriminator and the adaptive weight need."""

    loss: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    indices: Tensor
    reconstruction: Float[Tensor, "b 3 y x"]
    last_layer: tuple[Tensor, Tensor]


class TokenizerObjective(nn.Module):
    """Forward is a training step's loss; the perceptual network and the discriminator are judges, not parameters of it.

    The quantizer sees the latents of all micro-batches at once, so its statistics are those of the global batch. Micro-batches
    only bound the activations: encoder and decoder are recomputed in the backward pass, chunk by chunk.

    A guide adds what a pretrained vision network asks; `thaw` is the progress at which the encoder begins to learn. Further
    codes of a quantizer are rendered and judged like its codes, and their losses are added.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        perceptual: Perceptual | None,
        perceptual_weight: float,
        guide: VisionGuide | None = None,
        thaw: float = 0.0,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.perceptual_weight = perceptual_weight
        self.guide = guide
        self.thaw = thaw
        # kept out of the module tree: DDP must not see the parameters of judges
        self._judges: dict[str, Any] = {"perceptual": perceptual}

    def anneal(self, progress: float) -> None:
        """Between two optimizer steps: move the quantizer's schedules and the encoder's thaw to `progress` (0 ... 1)."""
        self.tokenizer.quantizer.anneal(progress)
        self.tokenizer.frozen = progress < self.thaw

    def forward(
        self,
        images: Float[Tensor, "b 3 y x"],
        micro_batch: int | None,
        discriminator: nn.Module | None,
        gan_weight: float | Tensor,
    ) -> Objective:
        n, size = len(images), micro_batch or len(images)
        chunks = images.split(size)
        run = checkpointed if len(chunks) > 1 else directly
        features = torch.cat([run(self.tokenizer.features, chunk) for chunk in chunks])
        latents = self.tokenizer.project(features)
        quantized = self.tokenizer.quantize(latents)

        def picture(codes: Tensor, chunk: Tensor) -> tuple[Tensor, PictureLoss]:
            reconstruction = self.tokenizer.render(codes)
            loss = picture_loss(
                reconstruction,
                chunk,
                self._judges["perceptual"],
                self.perceptual_weight,
                discriminator,
                gan_weight,
                self.tokenizer.decoder.last_weight,
            )
            return reconstruction.detach().float(), loss

        def rendered(codes: Tensor) -> tuple[list[Tensor], list[PictureLoss]]:
            pictures = [run(picture, part, chunk) for part, chunk in zip(codes.split(size), chunks, strict=True)]
            return [reconstruction for reconstruction, _ in pictures], [loss for _, loss in pictures]

        reconstructions, ours = rendered(quantized.codes)
        others = [loss for codes in quantized.further for loss in rendered(codes)[1]]
        losses = ours + others
        pictures = sum_of([loss.surrogate for loss in losses])
        terms = {name: sum_of([loss.terms[name] for loss in ours]) / n for name in ours[0].terms}
        if others:
            terms |= {f"further/{name}": sum_of([loss.terms[name] for loss in others]) / n for name in ours[0].terms}
        terms |= {f"quantizer/{name}": value.detach() for name, value in quantized.losses.items()}
        loss = pictures / n + sum_of(list(quantized.losses.values()))
        if self.guide is not None:
            last_weight, frozen = self.tokenizer.to_code.weight, self.tokenizer.frozen
            guidance = self.guide(images, size, run, features, latents, pictures, last_weight, frozen)
            loss, terms = loss + guidance.loss, terms | guidance.terms
        return Objective(
            loss=loss,
            terms=terms,
            indices=quantized.indices,
            reconstruction=torch.cat(reconstructions),
            last_layer=(sum_of([loss.last_layer[0] for loss in losses]), sum_of([loss.last_layer[1] for loss in losses])),
        )


def directly(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """Call a function."""
    return function(*inputs)


def checkpointed(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """Call a function and forget its activations; the backward pass computes them again."""
    return checkpoint(function, *inputs, use_reentrant=False)


def sum_of(values: list[Tensor]) -> Tensor:
    """The sum of scalars or equal shapes, 0.0 for none."""
    return torch.stack(values).sum(0) if values else torch.zeros(())
