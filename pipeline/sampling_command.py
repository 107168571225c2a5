"""What `python -m pipeline.sample` does once its command line is read."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
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
from pipeline.core.files import read_json
from pipeline.core.progress import progress_bar
from pipeline.generator import ImageGenerator
from stage2_prior.priors import PRIORS

BATCH = 64
CELL = 128  # pixels that a cell has at least, small images enlarged


@dataclass(frozen=True)
class SampleRequest:
    """What to sample: `options` are the sampler's, None where its default holds."""

    query: str
    seeds: list[int]
    pipeline: Path | None
    prior: str | None
    options: dict[str, Any]
    out: Path
    zoom: int | None


def sample_to_file(request: SampleRequest, dry_run: bool = False) -> None:
    """Sample one image per seed and write them as one PNG, in a square grid."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_flush_denormal(True)
    path = request.pipeline or newest_prior(request.prior)
    generator = load_pipeline(path)
    generator.to("cuda" if torch.cuda.is_available() else "cpu")
    classes = generator.classes(request.query)
    labels = [label for label, _ in zip(cycle(classes), request.seeds, strict=False)]
    sampling = generator.options(**request.options)
    names = ", ".join(described(generator, label) for label in classes[:4]) + (", …" if len(classes) > 4 else "")
    if dry_run:
        print(f"{path}: {len(labels)} images of {names}\n{sampling}\n-> {request.out}")
        return
    images = []
    bar = progress_bar(len(labels), "sample", enabled=len(labels) > BATCH)
    for batch in generator.batches(labels, request.seeds, sampling, BATCH):
        images.append(batch.cpu())
        bar.update(len(batch))
    bar.close()
    save_grid(torch.cat(images), request.out, request.zoom)
    print(f"{request.out}: {len(labels)} image{'s' * (len(labels) > 1)} of {names} from {path}")


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


def save_grid(images: UInt8[Tensor, "b 3 y x"], path: Path, zoom: int | None) -> None:
    """Write images as one PNG, side by side in a grid that is about square."""
    zoom = zoom or -(-CELL // images.shape[-1])
    columns = math.ceil(math.sqrt(len(images)))
    gap = 0 if len(images) == 1 else 2
    grid = make_grid(images, nrow=columns, padding=gap, pad_value=255).permute(1, 2, 0).numpy()
    picture = Image.fromarray(grid)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be written ({error}); choose another --out, ending in .png") from None
