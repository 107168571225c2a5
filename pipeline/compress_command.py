"""What `python -m pipeline.compress` does once its command line is read."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from pipeline.api import find_runs, load_pipeline, load_prior, prior_folder, tokenizer_folder, weights_sha256
from pipeline.core.code_usage import code_usage
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, require_writable, write_json
from pipeline.core.progress import progress_bar
from pipeline.core.rng import generator
from pipeline.core.run_folder import versions
from pipeline.core.saved_model import WEIGHTS
from pipeline.core.token_file import MAGIC, TokenFileHeader, read_token_file, write_token_file
from pipeline.core.token_store import TokenStore, read_identity
from pipeline.editing import encode
from pipeline.editing_command import read_picture
from pipeline.generator import ImageGenerator
from pipeline.sampling_command import described, newest_prior, write_picture
from pipeline.token_coding import Models, coding_options, compress, decompress, environment_differences, require_models
from stage2_prior.prior import Prior

PNG = b"\x89PNG"  # how such a file starts


def encode_pictures(
    pictures: list[Path],
    out: Path,
    query: str | None,
    pipeline: Path | None,
    steps: int | None,
    order: str | None,
    batch_size: int,
    dry_run: bool,
) -> None:
    """Tokenize pictures, code their tokens under the prior, write one file."""
    for picture in pictures:
        if not picture.is_file():
            raise UserError(f"{picture}: no such file; give pictures to encode")
    path = pipeline or newest_prior(None)
    model = open_pipeline(path)
    models = identified(model.prior, path)
    options = coding_options(model.prior, steps=steps, order=order)
    label = None if query is None else only_class(model, query)
    if dry_run:
        shown = "no class" if label is None else described(model, label)
        print(f"{path}: {len(pictures)} pictures of {shown}, at most {model.prior.spec}\n{options}\n-> {out}")
        return
    require_writable(out, MAGIC)
    tokens, side = [], model.tokenizer.spec.image_size[0]
    with progress_bar(len(pictures), "tokenize", enabled=len(pictures) > batch_size) as bar:
        for begin in range(0, len(pictures), batch_size):
            images = torch.stack([read_picture(picture, side) for picture in pictures[begin : begin + batch_size]])
            tokens.append(encode(model, images))
            bar.update(len(images))
    labels = None if label is None else [label] * len(pictures)
    with progress_bar(len(pictures), "encode") as bar:
        coded = compress(models, torch.cat(tokens), labels, options, batch_size, bar.update)
    write_token_file(out, coded.content)
    pixels = len(pictures) * math.prod(model.prior.spec.image_size)
    rates = ", ".join(
        f"{bits / pixels:.4f} {name}"
        for name, bits in (
            ("as the prior has it", coded.model_bits.sum().item()),
            ("nominal", len(pictures) * model.prior.spec.bits_per_image),
        )
    )
    size = len(coded.content)
    print(f"{out}: {len(pictures)} images in {size} bytes, {8 * size / pixels:.4f} bits per pixel ({rates}) by {path}")


def decode_pictures(file: Path, out: Path, images: list[int] | None, pipeline: Path | None, dry_run: bool) -> None:
    """Decode a file, or the batches that some of its images are in, and write the pictures."""
    coded = read_token_file(file)
    header = coded.header
    wanted = list(range(header.images)) if images is None else sorted(set(images))
    for image in wanted:
        if not 0 <= image < header.images:
            raise UserError(f"--images: {image}; {file} holds images 0 to {header.images - 1}")
    path = pipeline or coding_prior(header, file)
    model = open_pipeline(path)
    models = identified(model.prior, path)
    require_models(models, header, str(file))
    differences = environment_differences(header, model.prior)
    # the number of threads is set to what it was
    note = ", ".join(difference for difference in differences if not difference.startswith("threads"))
    if dry_run:
        print(f"{file}: {len(wanted)} of {header.images} images by {path}{f'; {note}' if note else ''}\n-> {out}")
        return
    for image in wanted:
        require_writable(out / f"{image:05d}.png", PNG)
    with progress_bar(len(wanted), "decode") as bar:
        for batch in sorted({image // header.batch_size for image in wanted}):
            tokens = decompress(models, coded, batch, str(file))
            rows = header.batch_images(batch)
            own = [image for image in wanted if image in rows]
            pixels = model.decode(tokens[[image - rows.start for image in own]]).permute(0, 2, 3, 1).cpu().numpy()
            for image, picture in zip(own, pixels, strict=True):
                write_picture(Image.fromarray(picture), out / f"{image:05d}.png")
            bar.update(len(own))
    print(f"{out}: {len(wanted)} images of {file} by {path}" + (f" ({note}: the checksums hold)" if note else ""))


def measure_rate(
    tokens: Path | None,
    images: int,
    seed: int,
    no_labels: bool,
    pipeline: Path | None,
    steps: int | None,
    order: str | None,
    batch_size: int,
    out: Path | None,
    dry_run: bool,
) -> None:
    """Code validation images of a store, decode them again, write what they take beside what they could take."""
    path = pipeline or newest_prior(None)
    store = TokenStore(tokens or trained_on(path))
    prior = load_prior(path)
    start(prior)
    models = identified(prior, path)
    if models.tokenizer_sha256 != store.identity.tokenizer_sha256 or store.spec != prior.spec:
        raise UserError(f"{store.path}: tokens of another tokenizer than {path} learned; give its store with --tokens")
    options = coding_options(prior, steps=steps, order=order)
    count = min(images, store.images("validation"))
    out = out or store.path.parent / f"rate_{path.name}.json"
    if dry_run:
        print(f"{path}: {count} of {store.images('validation')} validation images of {store.path}\n{options}\n-> {out}")
        return
    coded_file = out.with_suffix(".lgq")
    require_writable(out, b"{")
    require_writable(coded_file, MAGIC)
    rows = torch.randperm(store.images("validation"), generator=generator("measure", seed))[:count].sort().values.tolist()
    grids, classes = store.batch("validation", rows)
    with progress_bar(2 * count, "encode, decode") as bar:
        began = time.perf_counter()
        coded = compress(models, grids, None if no_labels else classes.tolist(), options, batch_size, bar.update)
        encoded = time.perf_counter()
        write_token_file(coded_file, coded.content)
        file = read_token_file(coded_file)
        for batch, there in enumerate(grids.split(batch_size)):
            if not torch.equal(decompress(models, file, batch, str(coded_file)).cpu(), there):
                raise UserError(f"{coded_file}: images of batch {batch} came back changed, though their checksum holds")
            bar.update(len(there))
        decoded = time.perf_counter()
    told = torch.full_like(classes, store.num_classes) if no_labels else classes
    rates = rate_table(store, grids, coded.model_bits, validation_bits(prior, grids, told, batch_size, seed))
    measured = {"file": 8 * len(coded.content), "streams": 8 * coded.stream_bytes}
    pixels = math.prod(store.spec.image_size)
    per_image = {name: bits / count for name, bits in measured.items()} | rates
    result = {
        "pipeline": str(path),
        "tokens": str(store.path),
        "split": "validation",
        "images": count,
        "seed": seed,
        "labels": not no_labels,
        "bits_per_pixel": {name: bits / pixels for name, bits in per_image.items()},
        "bits_per_token": {name: bits / store.spec.t for name, bits in per_image.items()},
        "overhead": {
            "streams_over_model": measured["streams"] / coded.model_bits.sum().item() - 1,
            "file_over_model": measured["file"] / coded.model_bits.sum().item() - 1,
        },
        "file_bytes": len(coded.content),
        "round_trip": "bit-exact, every image",
        "images_per_second": {"encode": count / (encoded - began), "decode": count / (decoded - encoded)},
        "batch_size": batch_size,
        "coding": asdict(options),
        "environment": asdict(file.header.environment),
        "prior_sha256": models.prior_sha256,
        "tokenizer_sha256": models.tokenizer_sha256,
        "versions": versions(),
    }
    write_json(out, result)
    shown = ", ".join(f"{name} {bits:.4f}" for name, bits in result["bits_per_pixel"].items() if "error" not in name)
    print(f"{out}: bits per pixel of {count} images: {shown}")


def rate_table(
    store: TokenStore, grids: Int[Tensor, "n t d"], model_bits: Float[Tensor, " n"], validation: Float[Tensor, " n"]
) -> dict[str, float]:
    """Bits per image: what the prior asks for in the order of the codec (with its standard error), its validation bits (exact
    for AR, the bound over all orders for MaskGIT), the entropy of the histogram of these tokens, without and with Miller's
    correction for their number, and the nominal bits."""
    usage, t, n = code_usage(grids, store.spec.sizes), store.spec.t, len(grids)
    return {
        "model": model_bits.mean().item(),
        "model_standard_error": (model_bits.std() / math.sqrt(n)).item() if n > 1 else math.nan,
        "validation": validation.mean().item(),
        "histogram": t * usage.entropy_bits,
        "histogram_corrected": t * usage.effective_bits,
        "histograms_of_indices": t * sum(each.entropy_bits for each in usage.per_index),
        "nominal": store.spec.bits_per_image,
    }


def validation_bits(
    prior: Prior, grids: Int[Tensor, "n t d"], labels: Int[Tensor, " n"], batch_size: int, seed: int
) -> Float[Tensor, " n"]:
    """The prior's own validation bits of each image."""
    parts = []
    for number, (part, own) in enumerate(zip(grids.split(batch_size), labels.split(batch_size), strict=True)):
        noise = prior.draw_noise(len(part), generator(seed, "measure", number))
        on_device = {name: draws.to(prior.device) for name, draws in noise.items()}
        parts.append(prior.validation_bits(part.to(prior.device), own.to(prior.device), on_device).double().cpu())
    return torch.cat(parts)


def start(model: Any) -> None:
    """A model where it is to run; the same settings for coding and decoding."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_flush_denormal(True)
    model.to("cuda" if torch.cuda.is_available() else "cpu")


def open_pipeline(path: Path) -> ImageGenerator:
    """A pipeline, ready."""
    model = load_pipeline(path)
    start(model)
    return model


def identified(prior: Prior, path: Path) -> Models:
    """A prior with the hashes by which files know it and its tokenizer."""
    tokens = prior_folder(path) / "tokens.json"
    own = read_identity(tokens).tokenizer_sha256 if tokens.exists() else weights_sha256(tokenizer_folder(path))
    return Models(prior, weights_sha256(prior_folder(path)), own)


def coding_prior(header: TokenFileHeader, file: Path) -> Path:
    """The run below `runs` whose prior a file was coded with."""
    for run in find_runs("runs", "prior"):
        if (prior_folder(run) / WEIGHTS).exists() and weights_sha256(prior_folder(run)) == header.prior_sha256:
            return run
    wanted = header.prior_sha256[:12]
    raise UserError(f"{file}: its prior ({wanted}) is not below runs/; give the pipeline that encoded it with --pipeline")


def trained_on(path: Path) -> Path:
    """The store that a run's prior was trained on."""
    training = prior_folder(path) / "training.json"
    if not training.exists():
        raise UserError(f"{path}: does not say which tokens it was trained on; give a store with --tokens")
    described = read_json(training)
    if not isinstance(described, dict) or not isinstance(described.get("tokens"), str):
        raise UserError(f"{training}: does not say which tokens {path} was trained on; give a store with --tokens")
    return Path(described["tokens"])


def only_class(model: ImageGenerator, query: str) -> int:
    """The one class of this name."""
    classes = model.classes(query)
    if len(classes) > 1:
        names = ", ".join(described(model, label) for label in classes[:4])
        raise UserError(f"--class: {query!r} means {len(classes)} classes ({names}, …); give the number of one")
    return classes[0]
