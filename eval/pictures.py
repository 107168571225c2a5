"""Pictures for the report: contact sheets of equal tiles, without gaps, at the images' own resolution."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.errors import UserError

SMALLEST = {"lossless": True, "quality": 100, "method": 6}  # of WebP


def save_sheet(path: Path, tiles: UInt8[Tensor, "n c y x"], columns: int) -> None:
    """Write tiles (RGB, or RGBA with four channels) row by row as one PNG or WebP; the last row is filled up with black.

    Without loss, whichever the path's ending asks for; WebP takes a quarter less.
    """
    n, c, y, x = tiles.shape
    rows = math.ceil(n / columns)
    filled = torch.cat([tiles, tiles.new_zeros(rows * columns - n, c, y, x)])
    sheet = filled.view(rows, columns, c, y, x).permute(0, 3, 1, 4, 2).reshape(rows * y, columns * x, c)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet.cpu().numpy()).save(path, **(SMALLEST if path.suffix == ".webp" else {}))


def save_images(folder: Path, images: UInt8[Tensor, "b 3 y x"], first: int = 0) -> None:
    """Write images one by one, as PNG without loss, numbered from `first` on so that their names keep their order."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy(), first):
        Image.fromarray(image).save(folder / f"{number:08d}.png", compress_level=1)


def read_sheet(path: Path, tile: tuple[int, int], count: int) -> list[Image.Image]:
    """The first `count` tiles, (y, x) pixels each, of a sheet; UserError where it is missing, damaged or of another layout."""
    y, x = tile
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture)
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: no readable picture ({type(error).__name__}); run eval.run again") from None
    rows, columns = pixels.shape[0] // y, pixels.shape[1] // x
    if pixels.shape[0] % y or pixels.shape[1] % x or rows * columns < count:
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise UserError(f"{path}: {size} pixels do not hold {count} tiles of {x}x{y}; run eval.run again")
    places = [divmod(number, columns) for number in range(count)]
    return [Image.fromarray(pixels[row * y : (row + 1) * y, column * x : (column + 1) * x]) for row, column in places]


def hide_cells(images: UInt8[Tensor, "b 3 y x"], known: Bool[Tensor, "b h w"]) -> UInt8[Tensor, "b 4 y x"]:
    """The images with an alpha channel that is 0 over the cells of the token grid that are not known yet."""
    alpha = F.interpolate(known[:, None].float(), images.shape[-2:], mode="nearest") * 255
    return torch.cat([images, alpha.to(torch.uint8)], 1)


def blur(images: UInt8[Tensor, "b 3 y x"], sigma: float) -> UInt8[Tensor, "b 3 y x"]:
    """A Gaussian blur of `sigma` pixels, edges mirrored: the copy of the data that generated images should be better than."""
    radius = min(math.ceil(3 * sigma), min(images.shape[-2:]) - 1)
    window = torch.exp(-(torch.arange(-radius, radius + 1.0) ** 2) / (2 * sigma**2))
    window = window / window.sum()
    padded = F.pad(images.float(), (radius,) * 4, mode="reflect").flatten(0, 1)[:, None]
    soft = F.conv2d(F.conv2d(padded, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return soft.view(images.shape).add(0.5).floor().clamp(0, 255).to(torch.uint8)
