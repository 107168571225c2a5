"""What `python -m pipeline.sample` does once its command line is read."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from pipeline.api import find_runs, load_pipeline, prior_folder
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, require_writable, write_bytes
from pipeline.core.progress import progress_bar
from pipeline.generator import ImageGenerator
from stage2_prior.priors import PRIORS

BATCH = 64
CELL = 128  # pixels that a cell has at least, small images enlarged


@dataclass(frozen=True)
class SampleRequest:
    """What to sample: `options` are the sampler's, None where what the prior brings holds."""

    query: str
    seeds: list[int]
    pipeline: Path | None
    prior: str | None
    options: dict[str, Any]
    out: Path
    zoom: int | None


@dataclass(frozen=True)
class Sampler:
    """A pipeline that is ready to answer a request: `labels`, one per seed, of the classes that `names` tells."""

    path: Path
    model: ImageGenerator
    labels: list[int]
    names: str
    sampling: Any


def open_sampler(request: SampleRequest) -> Sampler:
    """Load the request's pipeline, and find its classes, which take turns over the seeds."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_flush_denormal(True)
    path = request.pipeline or newest_prior(request.prior)
    model = load_pipeline(path)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    classes = model.classes(request.query)
    labels = [label for label, _ in zip(cycle(classes), request.seeds, strict=False)]
    names = ", ".join(described(model, label) for label in classes[:4]) + (", …" if len(classes) > 4 else "")
    return Sampler(path, model, labels, names, model.options(**request.options))


def sample_to_file(request: SampleRequest, dry_run: bool = False) -> None:
    """Sample one image per seed and write them as one PNG, in a square grid."""
    sampler = open_sampler(request)
    count = len(sampler.labels)
    if dry_run:
        print(f"{sampler.path}: {count} images of {sampler.names}\n{sampler.sampling}\n-> {request.out}")
        return
    require_picture(request.out)
    images = []
    bar = progress_bar(count, "sample", enabled=count > BATCH)
    for batch in sampler.model.batches(sampler.labels, request.seeds, sampler.sampling, BATCH):
        images.append(batch.cpu())
        bar.update(len(batch))
    bar.close()
    save_grid(torch.cat(images), request.out, request.zoom)
    print(f"{request.out}: {count} image{'s' * (count > 1)} of {sampler.names} from {sampler.path}")


def newest_prior(kind: str | None) -> Path:
    """The newest finished prior below `runs`, of a kind if one is named."""
    for run in find_runs("runs", "prior"):
        if kind is None or read_json(prior_folder(run) / "config.json").get("_class_name") == PRIORS[kind].__name__:
            return run
    raise UserError(f"runs: no finished {kind or 'prior'}; run `make demo`, or train one with stage2_prior/train.py")


def described(generator: ImageGenerator, label: int) -> str:
    """A class by number and name."""
    names = generator.config["class_names"]
    return f"{label} ({names[label]})" if names else str(label)


def require_picture(path: Path, *inputs: Path | None) -> None:
    """UserError, before the work, where a picture of this name cannot be written, or would replace an input or no picture."""
    require_writable(path)
    if path.exists() and path.stat().st_size:
        if any(given is not None and path.samefile(given) for given in inputs):
            raise UserError(f"{path}: is to be read and to be written; choose another --out")
        try:
            Image.open(path).close()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            raise UserError(f"{path}: cannot be written (it holds no picture); choose another --out") from None
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise UserError(f"{path}: cannot be written (no kind of picture); choose another --out, ending in .png")


def save_grid(images: UInt8[Tensor, "b 3 y x"], path: Path, zoom: int | None, columns: int | None = None) -> None:
    """Write images as one PNG, side by side in a grid of so many columns, or one that is about square."""
    zoom = zoom or -(-CELL // images.shape[-1])
    columns = columns or math.ceil(math.sqrt(len(images)))
    gap = 0 if len(images) == 1 else 2
    grid = make_grid(images, nrow=columns, padding=gap, pad_value=255).permute(1, 2, 0).numpy()
    picture = Image.fromarray(grid)
    write_picture(picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST), path)


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture in one step, of the kind that its name says; UserError where that cannot be."""
    content = BytesIO()
    try:
        picture.save(content, Image.registered_extensions().get(path.suffix.lower()))
        write_bytes(path, content.getvalue())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be written ({reason}); choose another --out, ending in .png") from None
