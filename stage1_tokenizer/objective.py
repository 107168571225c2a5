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
    """

    def __init__(self, tokenizer: Tokenizer, perceptual: Perceptual | None, perceptual_weight: float) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.perceptual_weight = perceptual_weight
        # kept out of the module tree: DDP must not see the parameters of judges
        self._judges: dict[str, Any] = {"perceptual": perceptual}

    def forward(
        self,
        images: Float[Tensor, "b 3 y x"],
        micro_batch: int | None,
        discriminator: nn.Module | None,
        gan_weight: float | Tensor,
    ) -> Objective:
        chunks = images.split(micro_batch or len(images))
        run = checkpointed if len(chunks) > 1 else directly
        latents = torch.cat([run(self.tokenizer.latents, chunk) for chunk in chunks])
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

        pictures = [
            run(picture, codes, chunk)
            for codes, chunk in zip(quantized.codes.split(micro_batch or len(images)), chunks, strict=True)
        ]
        losses = [loss for _, loss in pictures]
        n = len(images)
        terms = {name: sum_of([loss.terms[name] for loss in losses]) / n for name in losses[0].terms}
        return Objective(
            loss=sum_of([loss.surrogate for loss in losses]) / n + sum_of(list(quantized.losses.values())),
            terms=terms | {f"quantizer/{name}": value.detach() for name, value in quantized.losses.items()},
            indices=quantized.indices,
            reconstruction=torch.cat([reconstruction for reconstruction, _ in pictures]),
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
