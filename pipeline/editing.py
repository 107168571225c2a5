"""Editing pictures with a prior: holes are filled, borders extended, pictures varied or moved to another class.

An edit samples some tokens again and keeps the others. Pixels that are to stay do stay, bit for bit: they are copied back.
What lies in a hole is painted over before the picture is encoded, so that nothing of it can reach the tokens around it.

MaskGIT sees all kept tokens, and so does an autoregressive prior that has learnt random orders to the end (`random_until` 1):
it starts with them, wherever they lie. One that has not sees only those that come before a hole in raster order, next-scale
prediction those of coarser scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from numbers import Integral
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from pipeline.core.errors import UserError
from pipeline.core.rng import derive_seed, generator
from pipeline.core.token_spec import TokenSpec
from pipeline.pixels import GREY
from stage1_tokenizer.tokenizer import Tokenizer
from stage2_prior.prior import Mixture, Prior
from stage2_prior.sampling import UNKNOWN, Progress

Images = UInt8[Tensor, "b 3 y x"]
Masks = Bool[Tensor, "b y x"]
Part = TypeVar("Part", bound=nn.Module)


@runtime_checkable
class Model(Protocol):
    """What edits: an ImageGenerator, which has these functions as methods too."""

    tokenizer: Tokenizer
    prior: Prior

    def decode(self, tokens: Int[Tensor, "b t d"]) -> UInt8[Tensor, "b 3 y x"]:
        """Pixels of tokens."""
        ...


@torch.no_grad()
def inpaint(
    model: Model,
    images: Images,
    masks: Masks,
    class_labels: Sequence[int | Mixture],
    seeds: Sequence[int],
    sampling: Any,
    grow: int = 1,
    progress: Progress | None = None,
) -> Images:
    """Fill the masked pixels of each image, in the sense of its label; all other pixels are those that came in.

    The tokens of every cell with a masked pixel are sampled, and those up to `grow` cells away, which the hole has touched.
    Raises UserError for a `grow` below 0.
    """
    require_alike(images=images, masks=masks, labels=class_labels, seeds=seeds)
    if masks.shape[-2:] != images.shape[-2:]:
        sizes = [tuple(given.shape[-2:]) for given in (masks, images)]
        raise UserError(f"masks: of {sizes[0]} pixels, the images of {sizes[1]}; give masks of their size")
    if not isinstance(grow, Integral) or grow < 0:
        raise UserError(f"grow: {grow}; give a whole number of cells, at least 0")
    masks = masks.to(images.device) != 0  # of bytes, as they may be too, ~ would make no opposite
    tokens = encode(model, blank(images, masks))
    given = tokens.masked_fill(hole_tokens(masks, model.tokenizer.spec, grow)[..., None].to(tokens.device), UNKNOWN)
    tokens = onloaded(model.prior).sample(class_labels, sampling, seeds, given=given, progress=progress).tokens
    filled = model.decode(tokens).to(images.device)
    return torch.where(masks[:, None], filled, images)


@torch.no_grad()
def vary(
    model: Model,
    images: Images,
    strength: float,
    class_labels: Sequence[int | Mixture],
    seeds: Sequence[int],
    sampling: Any,
    progress: Progress | None = None,
) -> Images:
    """Sample the share `strength` of each image's tokens again, which ones its seed decides; another label changes the class.

    0 gives the tokenizer's reconstructions, 1 new images. Raises UserError for a strength outside [0, 1].
    """
    if not 0 <= strength <= 1:
        raise UserError(f"strength: {strength}; give a share of the tokens from 0 to 1")
    require_alike(images=images, labels=class_labels, seeds=seeds)
    tokens = encode(model, images)
    again = round(strength * tokens.shape[1])
    for row, seed in enumerate(seeds):
        chosen = torch.randperm(tokens.shape[1], generator=generator("vary", seed))[:again]
        tokens[row, chosen.to(tokens.device)] = UNKNOWN
    tokens = onloaded(model.prior).sample(class_labels, sampling, seeds, given=tokens, progress=progress).tokens
    return model.decode(tokens).to(images.device)


def outpaint(
    model: Model,
    images: Images,
    margins: tuple[int, int, int, int],
    class_labels: Sequence[int | Mixture],
    seeds: Sequence[int],
    sampling: Any,
    progress: Progress | None = None,
) -> UInt8[Tensor, "b 3 y2 x2"]:
    """Extend images of the tokenizer's size by (top, bottom, left, right) pixels, one result per image, label and seed.

    Windows of that size slide over the canvas, by half of it at a time and from the picture outwards; each fills what is
    still unknown in it; where `progress` stops, the rest stays grey. Raises UserError for margins that are no whole pixels.
    """
    require_alike(images=images, labels=class_labels, seeds=seeds)
    if len(margins) != 4 or not all(isinstance(margin, Integral) and margin >= 0 for margin in margins):
        raise UserError(f"margins: {margins}; give whole pixels, at least 0, for top, bottom, left, right")
    side_y, side_x = require_size(model, images)
    top, bottom, left, right = margins
    canvas = F.pad(images, (left, right, top, bottom))
    unknown = torch.ones(canvas.shape[-2:], dtype=torch.bool, device=images.device)
    unknown[top : top + side_y, left : left + side_x] = False
    stopped = False

    def told(done: int, steps: int, tokens: Tensor) -> Tensor | None:
        nonlocal stopped
        answer = tokens if progress is None else progress(done, steps, tokens)
        stopped = answer is None
        return answer

    for number, (y, x) in enumerate(windows(canvas.shape[-2:], (side_y, side_x), (top, left))):
        window = (..., slice(y, y + side_y), slice(x, x + side_x))
        if unknown[window].any():
            masks = unknown[window].expand(len(images), -1, -1)
            own = [derive_seed("outpaint", seed, number) for seed in seeds]
            canvas[window] = inpaint(model, canvas[window], masks, class_labels, own, sampling, progress=told)
            unknown[window] = False
        if stopped:
            return torch.where(unknown, GREY, canvas)
    return canvas


def windows(canvas: Sequence[int], window: Sequence[int], start: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Corners (y, x) of windows that cover a canvas, the nearest to `start` first, neighbours overlapping by at least half."""
    rows, columns = (
        sorted({0, size - side, *(at for at in range(first % (side // 2), size - side + 1, side // 2))})
        for size, side, first in zip(canvas, window, start, strict=True)
    )
    corners = [(y, x) for y in rows for x in columns]
    return iter(sorted(corners, key=lambda corner: (abs(corner[0] - start[0]) + abs(corner[1] - start[1]), corner)))


def encode(model: Model, images: Images) -> Int[Tensor, "b t d"]:
    """Tokens of uint8 images; UserError where they are not of the tokenizer's size.

    In float32, as a tokenizer measures distances, whatever the precision of its weights.
    """
    require_size(model, images)
    tokenizer = onloaded(model.tokenizer)
    if not len(images):  # PixelUnshuffle gives no image another shape
        return torch.empty(0, tokenizer.spec.t, tokenizer.spec.d, dtype=torch.long, device=tokenizer.device)
    scaled = images.to(tokenizer.device).float() / 127.5 - 1
    if tokenizer.dtype == torch.float32:
        return tokenizer.encode(scaled)
    encoder = _Encoder(tokenizer)
    weights = chain(encoder.named_parameters(), encoder.named_buffers())
    exact = {name: each.float() for name, each in weights if each.is_floating_point()}
    return functional_call(encoder, exact, (scaled,))


class _Encoder(nn.Module):
    """A tokenizer's way in as the `forward` that functional_call wants."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Float[Tensor, "b 3 y x"]) -> Int[Tensor, "b t d"]:
        return self.tokenizer.encode(images)


@apply_forward_hook
def onloaded(part: Part) -> Part:
    """A part of a pipeline, on its device: accelerate's hooks, which move it there, wait for a `forward` that nobody calls."""
    return part


def require_size(model: Model, images: Images) -> tuple[int, int]:
    """The tokenizer's size (y, x); UserError where the images are not of it."""
    y, x = model.tokenizer.spec.image_size
    if tuple(images.shape[-2:]) != (y, x):
        raise UserError(f"images of {images.shape[-1]} x {images.shape[-2]} pixels; this pipeline edits {x} x {y}")
    return y, x


def require_alike(**given: Sequence[Any] | Tensor) -> None:
    """UserError where one kind of things is given more often than another."""
    counts = [len(things) for things in given.values()]
    if len(set(counts)) > 1:
        raise UserError(f"{', '.join(given)}: {', '.join(map(str, counts))} of them; give as many of each")


def hole_tokens(masks: Masks, spec: TokenSpec, grow: int) -> Bool[Tensor, "b t"]:
    """The tokens of every scale whose cell has a masked pixel, or lies up to `grow` cells of the finest grid from one."""
    finest = F.adaptive_max_pool2d(masks[:, None].float(), spec.grid)
    finest = F.max_pool2d(finest, 2 * grow + 1, stride=1, padding=grow)
    touched = finest * masks.flatten(1).any(1)[:, None, None, None]
    return torch.cat([F.adaptive_max_pool2d(touched, scale).flatten(1) for scale in spec.scales], 1) > 0


def blank(images: Images, masks: Masks) -> Images:
    """The images with their holes in the mean colour of the rest; mid-grey where nothing is left."""
    kept = (~masks)[:, None]
    count = kept.sum((2, 3), keepdim=True)
    mean = (images * kept).sum((2, 3), keepdim=True) / count.clamp_min(1)
    colour = torch.where(count > 0, mean, 127.5).round().to(torch.uint8)
    return torch.where(kept, images, colour)
