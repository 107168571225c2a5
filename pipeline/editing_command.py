"""What `python -m pipeline.edit` does once its command line is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.data.decode import UnreadableImage, decode_image
from pipeline.core.errors import UserError
from pipeline.editing import Images, Masks, inpaint, outpaint, vary
from pipeline.pixels import GREY
from pipeline.sampling_command import BATCH, Sampler, SampleRequest, described, open_sampler, require_picture, save_grid
from stage2_prior.prior import Mixture


@dataclass(frozen=True)
class EditRequest(SampleRequest):
    """What to edit, by one of `box`, `mask`, `extend` and `vary`, and what every request to sample says."""

    picture: Path
    box: tuple[slice, slice] | None
    mask: Path | None
    extend: tuple[int, int, int, int] | None
    vary: float | None


@dataclass(frozen=True)
class InterpolationRequest(SampleRequest):
    """How many images there are to be on the way to the class `to`, ends included."""

    to: str
    images: int


def interpolate_to_file(request: InterpolationRequest, dry_run: bool = False) -> None:
    """Write a strip of images per seed as one PNG, from the first of the classes that the query means to the first of `to`."""
    sampler = open_sampler(request)
    model, first, last = sampler.model, sampler.labels[0], sampler.model.classes(request.to)[0]
    way = f"{request.images} images from {described(model, first)} to {described(model, last)} by {sampler.path}"
    if dry_run:
        print(f"{way}\n{sampler.sampling}\n-> {request.out}")
        return
    require_picture(request.out)
    weights = torch.linspace(0, 1, request.images, dtype=torch.float64).tolist()
    labels = [Mixture(first, last, weight) for _ in request.seeds for weight in weights]
    seeds = [seed for seed in request.seeds for _ in weights]
    strips = torch.cat([batch.cpu() for batch in model.batches(labels, seeds, sampler.sampling, BATCH)])
    save_grid(strips, request.out, request.zoom, columns=request.images)
    print(f"{request.out}: {way}")


def edit_to_file(request: EditRequest, dry_run: bool = False) -> None:
    """Make one version per seed and write them as one PNG, the picture before them."""
    sampler = open_sampler(request)
    picture = read_picture(request.picture, sampler.model.tokenizer.spec.image_size[0])
    mask = hole(request, picture)
    count = len(sampler.labels)
    if dry_run:
        print(f"{request.picture}: {count} versions as {sampler.names} by {sampler.path}\n{sampler.sampling}\n-> {request.out}")
        return
    require_picture(request.out, request.picture, request.mask)
    shown, versions = edit(sampler, picture, mask, request)
    save_grid(torch.cat([shown[None], versions]), request.out, request.zoom)
    print(f"{request.out}: the picture and {count} version{'s' * (count > 1)} as {sampler.names} by {sampler.path}")


def edit(
    sampler: Sampler, picture: UInt8[Tensor, "3 y x"], mask: Masks | None, request: EditRequest
) -> tuple[UInt8[Tensor, "3 y2 x2"], UInt8[Tensor, "b 3 y2 x2"]]:
    """The picture as it is shown, and its versions of the same size."""
    model, labels, sampling = sampler.model, sampler.labels, sampler.sampling
    images: Images = picture.expand(len(labels), -1, -1, -1)
    if request.extend is not None:
        top, bottom, left, right = request.extend
        wide = outpaint(model, images, request.extend, labels, request.seeds, sampling)
        return F.pad(picture, (left, right, top, bottom), value=GREY), wide
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
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a picture")
    try:
        pixels = decode_image({"bytes": None, "path": path}, side)
    except UnreadableImage as error:
        raise UserError(f"{path}: cannot be read as a picture ({error}); give another file") from None
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
