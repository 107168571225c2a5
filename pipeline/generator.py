"""Tokenizer and prior together as a diffusers pipeline: class labels in, images out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from pipeline.core.data.labels import find_classes
from pipeline.core.errors import UserError
from stage1_tokenizer.tokenizer import Tokenizer
from stage2_prior.prior import Prior


class ImageGenerator(DiffusionPipeline):
    """Class-conditional images. `class_names`, `class_ids` and `groups` name the classes, in their order.

    Raises UserError where the prior's tokens are not the tokenizer's.
    """

    model_cpu_offload_seq = "prior->tokenizer"

    def __init__(
        self,
        tokenizer: Tokenizer,
        prior: Prior,
        class_names: list[str] | None = None,
        class_ids: list[str] | None = None,
        groups: list[str] | None = None,
    ) -> None:
        super().__init__()
        if tokenizer.spec != prior.spec:
            raise UserError(f"the tokenizer makes {tokenizer.spec}, the prior knows {prior.spec}; use two that belong together")
        self.register_modules(tokenizer=tokenizer, prior=prior)
        self.register_to_config(class_names=class_names, class_ids=class_ids, groups=groups)

    def classes(self, query: int | str) -> list[int]:
        """The labels of a number, a name or a part of a name; UserError with the nearest names where there is none."""
        numbers = [str(label) for label in range(self.prior.config["num_classes"])]
        names = self.config["class_names"] or numbers
        return find_classes(query, names, self.config["class_ids"] or names, self.config["groups"] or names)

    def options(self, **changes: Any) -> Any:
        """The sampling options of this prior, with changes; None leaves a default. UserError for an option it has not."""
        kind = self.prior.options_type
        known = {field.name for field in dataclasses.fields(kind)}
        changes = {name: value for name, value in changes.items() if value is not None}
        for name in changes:
            if name not in known:
                raise UserError(f"{name}: {type(self.prior).__name__} has no such option; it has {', '.join(sorted(known))}")
        return kind(**changes)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        seeds: Sequence[int] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """One image per label and seed (default: 0, 1, …); the same seed gives the same image in any batch.

        `num_inference_steps` and `guidance_scale` are the sampler's `steps` and `guidance_scale`; its other options go by
        their own names. `output_type`: "pil", "np" (float in [0, 1] "b y x 3"), "pt" (that as "b 3 y x") or "latent".
        """
        sampling = self.options(steps=num_inference_steps, guidance_scale=guidance_scale, **options)
        seeds = list(range(len(class_labels))) if seeds is None else seeds
        tokens = self.prior.sample(class_labels, sampling, seeds).tokens
        images: Any = tokens if output_type == "latent" else _as(self.decode(tokens), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def batches(
        self, labels: Sequence[int], seeds: Sequence[int], sampling: Any, batch_size: int = 128
    ) -> Iterator[UInt8[Tensor, "b 3 y x"]]:
        """Images of many labels and seeds as uint8 batches: what evaluation consumes."""
        for start in range(0, len(labels), batch_size):
            rows = slice(start, start + batch_size)
            yield self.decode(self.prior.sample(labels[rows], sampling, seeds[rows]).tokens)

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "b t d"]) -> UInt8[Tensor, "b 3 y x"]:
        """Pixels of tokens, rounded to the nearest of 256 levels."""
        return to_uint8(self.tokenizer.decode(tokens))


def to_uint8(images: Float[Tensor, "b 3 y x"]) -> UInt8[Tensor, "b 3 y x"]:
    """Images in [-1, 1] as bytes, rounded half up (truncation would darken them by half a level)."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5 + 0.5).floor().to(torch.uint8)


def _as(images: UInt8[Tensor, "b 3 y x"], output_type: str) -> Any:
    if output_type == "pt":
        return images.float() / 255
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return pixels.astype(np.float32) / 255
    if output_type == "pil":
        return [Image.fromarray(image) for image in pixels]
    raise UserError(f"output_type: {output_type}; choose pil, np, pt or latent")
