"""What `python -m pipeline.edit` does once its command line is read."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from pipeline.api import load_pipeline
from pipeline.core.data.decode import UnreadableImage, center_crop, to_rgb
from pipeline.core.errors import UserError
from pipeline.editing import Images, Masks, inpaint, outpaint, vary
from pipeline.generator import ImageGenerator
from pipeline.sampling_command import described, newest_prior, save_grid

GREY = 128  # of a hole in the picture that is shown beside its versions


@dataclass(frozen=True)
class EditRequest:
    """What to edit, one of `box`, `mask`, `extend` and `vary`; `options` are the sampler's, None where its default holds."""

    picture: Path
    query: str
    seeds: list[int]
    pipeline: Path | None
    prior: str | None
    options: dict[str, Any]
    box: tuple[slice, slice] | None
    mask: Path | None
    extend: tuple[int, int, int, int] | None
    vary: float | None
    out: Path
    zoom: int | None


def edit_to_file(request: EditRequest, dry_run: bool = False) -> None:
    """Make one version per seed and write them as one PNG, the picture before them."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_flush_denormal(True)
    path = request.pipeline or newest_prior(request.prior or "maskgit")  # it sees what surrounds a hole on all sides
    model = load_pipeline(path)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    picture = read_picture(request.picture, model.tokenizer.spec.image_size[0])
    mask = hole(request, picture)
    classes = model.classes(request.query)
    labels = [label for label, _ in zip(cycle(classes), request.seeds, strict=False)]
    names = ", ".join(described(model, label) for label in classes[:4]) + (", …" if len(classes) > 4 else "")
    sampling = model.options(**request.options)
    if dry_run:
        print(f"{request.picture}: {len(labels)} versions as {names} by {path}\n{sampling}\n-> {request.out}")
        return
    shown, versions = edit(model, picture, mask, labels, request, sampling)
    save_grid(torch.cat([shown[None], versions]), request.out, request.zoom)
    print(f"{request.out}: the picture and {len(labels)} version{'s' * (len(labels) > 1)} as {names} by {path}")


def edit(
    model: ImageGenerator,
    picture: UInt8[Tensor, "3 y x"],
    mask: Masks | None,
    labels: list[int],
    request: EditRequest,
    sampling: Any,
) -> tuple[UInt8[Tensor, "3 y2 x2"], UInt8[Tensor, "b 3 y2 x2"]]:
    """The picture as it is shown, and its versions of the same size."""
    images: Images = picture.expand(len(labels), -1, -1, -1)
    if request.extend is not None:
        top, bottom, left, right = request.extend
        parts = [
            outpaint(model, images[:1], request.extend, label, [seed], sampling)
            for label, seed in zip(labels, request.seeds, strict=True)
        ]
        return F.pad(picture, (left, right, top, bottom), value=GREY), torch.cat(parts)
    if request.vary is not None:
        return picture, vary(model, images, request.vary, labels, request.seeds, sampling)
    assert mask is not None
    return picture.masked_fill(mask, GREY), inpaint(
        model, images, mask.expand(len(labels), -1, -1), labels, request.seeds, sampling
    )


def hole(request: EditRequest, picture: UInt8[Tensor, "3 y x"]) -> Masks | None:
    """The mask "1 y x" that a box or a mask file means; UserError where it holds no pixel."""
    y, x = picture.shape[-2:]
    if request.box is not None:
        rows, columns = request.box
        if rows.stop > y or columns.stop > x:
            raise UserError(f"--box: reaches to row {rows.stop} and column {columns.stop}; the picture has {y} and {x}")
        mask = torch.zeros(1, y, x, dtype=torch.bool)
        mask[:, rows, columns] = True
        return mask
    if request.mask is None:
        return None
    mask = read_picture(request.mask, y).float().mean(0, keepdim=True) > 127.5
    if not mask.any():
        raise UserError(f"{request.mask}: no pixel is brighter than grey; paint the hole white")
    return mask


def read_picture(path: Path, side: int) -> UInt8[Tensor, "3 y x"]:
    """A picture as training images are read: upright, RGB, scaled and cut to a square; UserError where it cannot be read."""
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.ascontiguousarray(center_crop(to_rgb(image), side))).permute(2, 0, 1)
    except (OSError, UnreadableImage, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read as a picture ({error})") from None
