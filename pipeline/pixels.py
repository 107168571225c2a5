"""Pictures as people have them, and as tokenizers want them: uint8 tensors "b 3 y x"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from pipeline.core.errors import UserError

Pictures = UInt8[Tensor, "b 3 y x"] | Image.Image | Sequence[Image.Image]
Holes = Bool[Tensor, "b y x"] | Image.Image | Sequence[Image.Image]


def to_uint8(images: Float[Tensor, "b 3 y x"]) -> UInt8[Tensor, "b 3 y x"]:
    """Images in [-1, 1] as bytes, rounded half up (truncation would darken them by half a level)."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5 + 0.5).floor().to(torch.uint8)


def from_pictures(pictures: Pictures) -> UInt8[Tensor, "b 3 y x"]:
    """Pictures as bytes; UserError where they are no pictures, or of different sizes."""
    if isinstance(pictures, Tensor):
        return _checked(pictures, torch.uint8, 4)
    return _stacked(pictures, "RGB").movedim(-1, 1)


def from_masks(masks: Holes) -> Bool[Tensor, "b y x"]:
    """Masks: true where they are, or brighter than grey where they are pictures."""
    return _checked(masks, torch.bool, 3) if isinstance(masks, Tensor) else _stacked(masks, "L") > 127


GREY = 128  # of what is not known yet


def as_output(images: UInt8[Tensor, "b 3 y x"], output_type: str) -> Any:
    """Images as "pil", "np" (float in [0, 1] "b y x 3") or "pt" (that as "b 3 y x"); UserError for another type."""
    if output_type == "pt":
        return images.float() / 255
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return pixels.astype(np.float32) / 255
    if output_type == "pil":
        return [Image.fromarray(image) for image in pixels]
    raise UserError(f"output_type: {output_type}; choose pil, np or pt")


def _stacked(pictures: Image.Image | Sequence[Image.Image], mode: str) -> Tensor:
    listed = [pictures] if isinstance(pictures, Image.Image) else list(pictures)
    if not listed or not all(isinstance(picture, Image.Image) for picture in listed):
        raise UserError("pictures: give PIL images, or a tensor of bytes (masks: of booleans)")
    sizes = {picture.size for picture in listed}
    if len(sizes) > 1:
        raise UserError(f"pictures: of {len(sizes)} different sizes, such as {min(sizes)}; give those of one size at a time")
    return torch.stack([torch.from_numpy(np.array(picture.convert(mode))) for picture in listed])


def _checked(tensor: Tensor, dtype: torch.dtype, axes: int) -> Tensor:
    if tensor.dtype != dtype or tensor.ndim != axes:
        wanted = {4: "uint8, batch x 3 x height x width", 3: "bool, batch x height x width"}[axes]
        raise UserError(f"pictures: a tensor of {tensor.dtype} with shape {tuple(tensor.shape)}; give one of {wanted}")
    return tensor
