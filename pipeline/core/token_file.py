"""Coded tokens as a file, batch after batch; it knows bytes, labels and checksums, not how tokens become bytes.

    "LGQTOKEN"  version u16 · bytes of the header u32 · bytes of the file u64                  little-endian throughout
    header      JSON: what the tokens are and what can read them (TokenFileHeader)
    index       per batch: bytes of its labels and stream u32 · checksum of its tokens and labels u32
    batches     labels as one number in base classes + 1 (none where all are the null class), then the stream
    checksum    CRC-32 of everything before it, u32

A batch is read without the others, and an image with its batch.
"""

from __future__ import annotations

import json
import math
import re
import struct
import typing
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from jaxtyping import Int
from torch import Tensor

from pipeline.core.errors import UserError
from pipeline.core.files import read_file, write_bytes
from pipeline.core.token_spec import TokenSpec

MAGIC, VERSION = b"LGQTOKEN", 2
Described = TypeVar("Described")
START, ENTRY, CHECK = struct.Struct("<8sHIQ"), struct.Struct("<II"), struct.Struct("<I")


LARGEST = 2**31 - 1  # of a header's numbers; more threads than MOST_THREADS no machine has
MOST_THREADS = 4096


@dataclass(frozen=True)
class Environment:
    """What may change the last bit of a logit: who reads a file says in what it differs where the tokens come out wrong."""

    torch: str
    constriction: str
    device: str
    dtype: str
    float32_matmul: str
    flush_denormal: bool
    threads: int

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= MOST_THREADS:
            raise ValueError(f"threads: {self.threads}")


@dataclass(frozen=True)
class TokenFileHeader:
    """spec: a TokenSpec as a dictionary. labelled: whether images have labels of their own; else all have the null class,
    number `num_classes`. coding: the options of the prior's coding. environment: what the logits were computed with.
    """

    spec: dict[str, Any]
    prior_sha256: str
    tokenizer_sha256: str
    images: int
    batch_size: int
    labelled: bool
    num_classes: int
    coding: dict[str, Any]
    environment: Environment

    def __post_init__(self) -> None:
        for name, least in (("images", 0), ("batch_size", 1), ("num_classes", 1)):
            if not least <= getattr(self, name) <= LARGEST:
                raise ValueError(f"{name}: {getattr(self, name)}")
        if self.spec != TokenSpec.from_dict(self.spec).to_dict():
            raise ValueError(f"spec: {self.spec}")
        if not all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in (self.prior_sha256, self.tokenizer_sha256)):
            raise ValueError("prior_sha256, tokenizer_sha256: not 64 hexadecimal digits each")

    @property
    def batches(self) -> int:
        """Batches in the file; the last may be smaller."""
        return -(-self.images // self.batch_size)

    def batch_images(self, batch: int) -> range:
        """The images of a batch."""
        start = batch * self.batch_size
        return range(start, min(start + self.batch_size, self.images))


@dataclass(frozen=True)
class CodedBatch:
    """Labels of a batch's images, the stream that its tokens became, and the checksum of both."""

    labels: list[int]
    stream: bytes
    checksum: int


@dataclass(frozen=True)
class TokenFile:
    """A file's contents: whole and undamaged, or there is none."""

    header: TokenFileHeader
    batches: list[CodedBatch]


def tokens_checksum(tokens: Int[Tensor, "b t d"], labels: Sequence[int]) -> int:
    """CRC-32 of tokens and labels, as little-endian 32-bit integers."""
    return zlib.crc32(struct.pack(f"<{len(labels)}i", *labels), zlib.crc32(tokens.cpu().numpy().astype("<i4").tobytes()))


def token_file_bytes(file: TokenFile) -> bytes:
    """The bytes of a file."""
    header = file.header
    described = json.dumps(asdict(header), separators=(",", ":"), ensure_ascii=False).encode()
    parts = [_pack(batch.labels, header) + batch.stream for batch in file.batches]
    index = b"".join(ENTRY.pack(len(part), batch.checksum) for part, batch in zip(parts, file.batches, strict=True))
    size = START.size + len(described) + len(index) + sum(map(len, parts)) + CHECK.size
    content = b"".join([START.pack(MAGIC, VERSION, len(described), size), described, index, *parts])
    return content + CHECK.pack(zlib.crc32(content))


def write_token_file(path: Path, content: bytes) -> None:
    """Write a file in one step; UserError where that cannot be."""
    try:
        write_bytes(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None


def read_token_file(path: Path) -> TokenFile:
    """A file, checked as far as can be without decoding. Raises UserError where it is missing, cut short or damaged."""
    try:
        content = read_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file that pipeline.compress encode wrote") from None
    if not content.startswith(MAGIC):
        raise UserError(f"{path}: no file of coded tokens; give one that pipeline.compress encode wrote")
    if len(content) < START.size + CHECK.size:
        raise UserError(f"{path}: cut short after {len(content)} bytes; copy it again")
    _, version, length, size = START.unpack_from(content)
    if version != VERSION:
        raise UserError(f"{path}: format {version}, this program reads {VERSION}; decode it with the program that wrote it")
    if len(content) != size:
        raise UserError(f"{path}: {len(content)} of {size} bytes; copy it again")
    if zlib.crc32(content[: -CHECK.size]) != CHECK.unpack(content[-CHECK.size :])[0]:
        raise UserError(f"{path}: damaged (its checksum does not hold); copy it again")
    try:
        return _parse(content, length)
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError, struct.error):
        raise UserError(f"{path}: not made by this program, though its checksum holds; encode the images again") from None


def from_fields(kind: type[Described], values: Any) -> Described:
    """A dataclass from a mapping that holds all of its fields and no other, each of the type that is declared.

    Raises ValueError that names the first field for which this does not hold.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{kind.__name__}: no mapping")
    hints = typing.get_type_hints(kind)
    for name in {**hints, **values}:
        declared = hints.get(name, Any)
        if name not in values or name not in hints or type(values[name]) is not (typing.get_origin(declared) or declared):
            raise ValueError(f"{name}: {values.get(name)!r}")
    return kind(**values)


def _parse(content: bytes, length: int) -> TokenFile:
    described = json.loads(content[START.size : START.size + length])
    header = from_fields(TokenFileHeader, {**described, "environment": from_fields(Environment, described["environment"])})
    at = START.size + length
    index = [ENTRY.unpack_from(content, at + number * ENTRY.size) for number in range(header.batches)]
    at += header.batches * ENTRY.size
    batches = []
    for batch, (size, checksum) in enumerate(index):
        labels, stream = _unpack(content[at : at + size], len(header.batch_images(batch)), header)
        batches.append(CodedBatch(labels, stream, checksum))
        at += size
    if at + CHECK.size != len(content):
        raise ValueError("the batches do not fill the file")
    return TokenFile(header, batches)


def _pack(labels: Sequence[int], header: TokenFileHeader) -> bytes:
    if not header.labelled:
        return b""
    number = 0
    for label in labels:
        number = number * (header.num_classes + 1) + label
    return number.to_bytes(_label_bytes(len(labels), header), "little")


def _unpack(part: bytes, images: int, header: TokenFileHeader) -> tuple[list[int], bytes]:
    if not header.labelled:
        return [header.num_classes] * images, part
    if images * math.log2(header.num_classes + 1) > 8 * len(part) + 8:  # before a number of that many bits is formed
        raise ValueError("the labels are cut short")
    size = _label_bytes(images, header)
    number, labels = int.from_bytes(part[:size], "little"), []
    for _ in range(images):
        number, label = divmod(number, header.num_classes + 1)
        labels.append(label)
    if number or len(part) < size:
        raise ValueError("labels outside the classes")
    return labels[::-1], part[size:]


def _label_bytes(images: int, header: TokenFileHeader) -> int:
    return -(-((header.num_classes + 1) ** images - 1).bit_length() // 8)
