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
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes
from pipeline.core.token_spec import TokenSpec

MAGIC, VERSION = b"LGQTOKEN", 1
START, ENTRY, CHECK = struct.Struct("<8sHIQ"), struct.Struct("<II"), struct.Struct("<I")


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
    environment: dict[str, Any]

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
        content = path.read_bytes()
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
    except (ArithmeticError, KeyError, TypeError, ValueError, struct.error):
        raise UserError(f"{path}: not made by this program, though its checksum holds; encode the images again") from None


def _parse(content: bytes, length: int) -> TokenFile:
    header = TokenFileHeader(**json.loads(content[START.size : START.size + length]))
    TokenSpec.from_dict(header.spec)
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
