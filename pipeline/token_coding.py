"""Tokens of many images to the bytes of a file and back, under a prior."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.core.errors import UserError
from pipeline.core.token_file import (
    CodedBatch,
    Environment,
    TokenFile,
    TokenFileHeader,
    from_fields,
    token_file_bytes,
    tokens_checksum,
)
from stage2_prior.codec import CodingOptions, DamagedMessage, decode, encode
from stage2_prior.prior import Prior

Progress = Callable[[int], object]  # told how many images more are done


@dataclass(frozen=True)
class Models:
    """A prior in evaluation mode, and the sha256 of its weights and of the tokenizer's whose tokens it knows."""

    prior: Prior
    prior_sha256: str
    tokenizer_sha256: str


@dataclass(frozen=True)
class Compressed:
    """A file's bytes; those of its streams alone; and per image what the streams would take at least, in bits."""

    content: bytes
    stream_bytes: int
    model_bits: Float[Tensor, " n"]


def coding_options(prior: Prior, **changes: Any) -> CodingOptions:
    """The options of this prior's coding, with changes; None leaves a default. UserError for an option that it has not."""
    changes = {name: value for name, value in changes.items() if value is not None}
    known = {field.name for field in dataclasses.fields(prior.coding_type)}
    for name in changes:
        if name not in known:
            has = ", ".join(sorted(known)) or "none"
            raise UserError(f"coding.{name}: {type(prior).__name__} has no such option (it has: {has}); leave it out")
    return prior.coding_type(**changes)


def environment(prior: Prior) -> Environment:
    """What the logits of a prior are computed with, here and now."""
    device = prior.device
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return Environment(
        torch=torch.__version__,
        constriction=importlib.metadata.version("constriction"),
        device=f"{device.type}: {name}",
        dtype=str(prior.dtype).removeprefix("torch."),
        float32_matmul=torch.get_float32_matmul_precision(),
        flush_denormal=_flushes_denormals(),
        threads=torch.get_num_threads(),
    )


def _flushes_denormals() -> bool:
    """Whether this thread's arithmetic takes denormals for 0; torch has a setter only."""
    return bool((torch.tensor([torch.finfo(torch.float32).tiny]) / 2 == 0).all())


def compress(
    models: Models,
    tokens: Int[Tensor, "n t d"],
    labels: Sequence[int] | None,
    options: CodingOptions,
    batch_size: int = 64,
    progress: Progress = lambda images: None,
) -> Compressed:
    """A file of these images' tokens. labels: of the prior's classes, its null class included; None: all of the null class.

    Images of a batch are coded together and decoded together. Raises UserError for tokens or labels that are not the prior's.
    """
    prior, n = models.prior, len(tokens)
    classes = prior.config["num_classes"]
    _require_known(prior, tokens, labels)
    header = TokenFileHeader(
        spec=prior.spec.to_dict(),
        prior_sha256=models.prior_sha256,
        tokenizer_sha256=models.tokenizer_sha256,
        images=n,
        batch_size=batch_size,
        labelled=labels is not None,
        num_classes=classes,
        coding=asdict(options),
        environment=environment(prior),
    )
    batches, bits = [], [torch.zeros(0, dtype=torch.float64)]
    for batch in range(header.batches):
        rows = header.batch_images(batch)
        part = tokens[rows.start : rows.stop].to(prior.device)
        own = [classes] * len(rows) if labels is None else [labels[row] for row in rows]
        message = encode(prior.coding_model(torch.tensor(own, device=prior.device), options), part)
        batches.append(CodedBatch(own, message.stream, tokens_checksum(part, own)))
        bits.append(message.bits.cpu())
        progress(len(rows))
    content = token_file_bytes(TokenFile(header, batches))
    return Compressed(content, sum(len(batch.stream) for batch in batches), torch.cat(bits))


def decompress(models: Models, file: TokenFile, batch: int, place: str) -> Int[Tensor, "b t d"]:
    """The tokens of a batch, on as many threads as they were coded with, or a UserError that names the `place`.

    Refuses a file of other models. What comes out is checked against the tokens' checksum: it is what went in.
    """
    require_models(models, file.header, place)
    prior, coded = models.prior, file.batches[batch]
    images = file.header.batch_images(batch)
    labels = torch.tensor(coded.labels, device=prior.device)
    try:
        options = from_fields(prior.coding_type, file.header.coding)
    except ValueError as error:
        raise UserError(f"{place}: no way to code that {type(prior).__name__} has ({error}); encode the images again") from None
    with _threads(file.header.environment.threads):
        try:
            tokens = decode(prior.coding_model(labels, options), coded.stream, len(images), prior.spec.d)
        except DamagedMessage:
            tokens = None
        differences = environment_differences(file.header, prior)
    if tokens is None or tokens_checksum(tokens, coded.labels) != coded.checksum:
        cause = f"; here {', '.join(differences)}: decode where it was encoded" if differences else "; encode the images again"
        raise UserError(f"{place}: images {images[0]} to {images[-1]} come out as other tokens than went in{cause}")
    return tokens


def require_models(models: Models, header: TokenFileHeader, place: str) -> None:
    """UserError where a file was made with other models."""
    ours = {"prior": models.prior_sha256, "tokenizer": models.tokenizer_sha256}
    theirs = {"prior": header.prior_sha256, "tokenizer": header.tokenizer_sha256}
    for name, found in ours.items():
        if found != theirs[name]:
            raise UserError(
                f"{place}: coded with {name} {theirs[name][:12]}, not with this one ({found[:12]}); "
                "give the pipeline that encoded it with --pipeline"
            )
    if header.spec != models.prior.spec.to_dict() or header.num_classes != models.prior.config["num_classes"]:
        raise UserError(f"{place}: its tokens or classes are not those of this prior; give the pipeline that encoded it")


def environment_differences(header: TokenFileHeader, prior: Prior) -> list[str]:
    """What is not as it was when a file was written, in words; any of it may change the last bit of a logit."""
    now = asdict(environment(prior))
    return [f"{name} {now[name]} (was {value})" for name, value in asdict(header.environment).items() if now[name] != value]


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _require_known(prior: Prior, tokens: Tensor, labels: Sequence[int] | None) -> None:
    sizes = torch.tensor(prior.spec.sizes, device=tokens.device)
    if tuple(tokens.shape[1:]) != (prior.spec.t, prior.spec.d) or (tokens < 0).any() or (tokens >= sizes).any():
        raise UserError(f"tokens {tuple(tokens.shape)} that are not this prior's ({prior.spec}); use those of its tokenizer")
    if labels is not None and (len(labels) != len(tokens) or any(not 0 <= x <= prior.config["num_classes"] for x in labels)):
        raise UserError(f"{len(labels)} labels for {len(tokens)} images, from 0 to {prior.config['num_classes']}; one for each")
