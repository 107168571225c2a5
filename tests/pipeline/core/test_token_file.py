"""Files of coded tokens: what was written is read, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
import zlib
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from pipeline.core.errors import UserError
from pipeline.core.token_file import (
    CHECK,
    START,
    CodedBatch,
    Environment,
    TokenFile,
    TokenFileHeader,
    read_token_file,
    token_file_bytes,
    tokens_checksum,
    write_token_file,
)

HEADER = TokenFileHeader(
    spec={"sizes": [16], "scales": [[4, 4]], "image_size": [16, 16]},
    prior_sha256="a" * 64,
    tokenizer_sha256="b" * 64,
    images=7,
    batch_size=3,
    labelled=True,
    num_classes=10,
    coding={"order": "halton"},
    environment=Environment("2", "0.5", "cpü", "float32", "highest", True, 1),
)
BATCHES = [CodedBatch([0, 10, 3], b"12345678", 5), CodedBatch([10] * 3, b"", 2**32 - 1), CodedBatch([0], b"abcd", 0)]
FILE = TokenFile(HEADER, BATCHES)
UNLABELLED = TokenFile(dataclasses.replace(HEADER, labelled=False, images=2), [CodedBatch([10, 10], b"1234", 1)])
EMPTY = TokenFile(dataclasses.replace(HEADER, images=0), [])


@pytest.mark.parametrize("file", [FILE, UNLABELLED, EMPTY], ids=["labelled", "unlabelled", "empty"])
def test_what_was_written_is_read(tmp_path, file):
    write_token_file(tmp_path / "deep/file.lgq", token_file_bytes(file))
    assert read_token_file(tmp_path / "deep/file.lgq") == file
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file.lgq"]


def test_labels_take_their_log2_and_no_labels_nothing():
    many = dataclasses.replace(HEADER, images=100, batch_size=100)
    labels = [(7 * i) % 11 for i in range(100)]
    sizes = [
        len(token_file_bytes(TokenFile(dataclasses.replace(many, labelled=told), [CodedBatch(labels, b"", 0)])))
        for told in (True, False)
    ]
    assert sizes[0] - sizes[1] == 44 - 1  # ceil(100 log2(11) / 8) bytes; "false" is a letter longer than "true"


def test_every_cut_and_every_flipped_bit_is_noticed(tmp_path):
    content = token_file_bytes(FILE)
    for length in range(len(content)):
        (tmp_path / "file").write_bytes(content[:length])
        with pytest.raises(UserError):
            read_token_file(tmp_path / "file")
    for place in range(len(content)):
        (tmp_path / "file").write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(UserError):
            read_token_file(tmp_path / "file")


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "no file of coded tokens"),
        (b"PNG and more", "no file of coded tokens"),
        (b"LGQTOKEN", "cut short after 8 bytes"),
        (START.pack(b"LGQTOKEN", 1, 0, 26) + b"1234", "format 1, this program reads 2"),
        (token_file_bytes(FILE)[:-9], r"\d+ of \d+ bytes"),
        (token_file_bytes(FILE) + b"more", r"\d+ of \d+ bytes"),
        (token_file_bytes(FILE)[:-1] + b"!", "its checksum does not hold"),
    ],
)
def test_the_damage_is_named(tmp_path, content, says):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_token_file(tmp_path / "file")
    with pytest.raises(UserError, match="nothing: cannot be read"):
        read_token_file(tmp_path / "nothing")


@pytest.mark.parametrize(
    "change",
    [
        *({"images": 10}, {"images": 70000}, {"batch_size": 0}, {"spec": {}}, {"num_classes": 1}, {"images": True}),
        {"labelled": 1},
        *({"prior_sha256": "a"}, {"tokenizer_sha256": None}, {"coding": []}, {"environment": {}}, {"environment": None}),
        *({"environment": asdict(HEADER.environment) | wrong} for wrong in ({"threads": 0}, {"threads": "1"}, {"more": 1})),
        *({"environment": asdict(HEADER.environment) | wrong} for wrong in ({"torch": 2}, {"flush_denormal": 1})),
        *({"more": 1}, {"num_classes": 10**400}, {"batch_size": 2**40, "images": 2**40, "num_classes": 2**30}),
    ],
    ids=str,
)
def test_a_header_that_contradicts_the_rest_is_refused_though_the_checksum_holds(tmp_path, change):
    good = token_file_bytes(FILE)
    (tmp_path / "file").write_bytes(good)
    assert read_token_file(tmp_path / "file") == FILE
    length = START.unpack_from(good)[2]
    described, rest = good[START.size :][:length], good[START.size + length : -CHECK.size]
    for name, value in change.items():
        header = json.loads(described)
        assert header.get(name) is not value
        described = json.dumps(header | {name: value}).encode()
    size = START.size + len(described) + len(rest) + CHECK.size
    content = START.pack(b"LGQTOKEN", 2, len(described), size) + described + rest
    (tmp_path / "file").write_bytes(content + CHECK.pack(zlib.crc32(content)))
    with pytest.raises(UserError, match="not made by this program"):
        read_token_file(tmp_path / "file")


def test_the_checksum_sees_tokens_their_places_and_labels():
    tokens = torch.arange(24).view(2, 4, 3)
    sums = {
        tokens_checksum(tokens, [1, 2]),
        tokens_checksum(tokens, [2, 1]),
        tokens_checksum(tokens.flip(0), [1, 2]),
        tokens_checksum(tokens.flip(1), [1, 2]),
        tokens_checksum(tokens.flip(2), [1, 2]),
    }
    assert len(sums) == 5 and tokens_checksum(tokens.transpose(0, 1).contiguous().transpose(0, 1), [1, 2]) in sums


def test_a_file_that_cannot_be_written_is_named():
    with pytest.raises(UserError, match="/dev/null/file: cannot be written"):
        write_token_file(Path("/dev/null/file"), b"")
