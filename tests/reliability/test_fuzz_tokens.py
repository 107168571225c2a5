"""Files of coded tokens and token stores: cut, flipped, with headers and numbers that cannot be."""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import datasets
import pytest
import torch

from pipeline.api import TokenStore, load_prior
from pipeline.compress_command import identified
from pipeline.core.token_file import CHECK, START, VERSION, TokenFile, read_token_file
from pipeline.token_coding import coding_options, compress, decompress

VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 7, 2**31, 2**63, 10**400, 0.5, "", "text", "é\n", "a" * 64, [], [1], [[]], {}),
    {"a": 1},
]


@pytest.fixture(scope="module", params=["maskgit", "ar"])
def coded(chain, request):
    """A prior as files know it, validation tokens, and their file's bytes."""
    run = getattr(chain, request.param)
    models = identified(load_prior(run), run)
    tokens, labels = TokenStore(chain.tokens).batch("validation", range(5))
    return models, tokens, compress(models, tokens, labels.tolist(), coding_options(models.prior), 2).content


def sealed(content: bytes, header: Any) -> bytes:
    """A file with another header whose sizes and checksum hold."""
    length = START.unpack_from(content)[2]
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    rest = content[START.size + length : -CHECK.size]
    start = START.pack(b"LGQTOKEN", VERSION, len(text), START.size + len(text) + len(rest) + CHECK.size)
    return start + text + rest + CHECK.pack(zlib.crc32(start + text + rest))


def spoilt(content: bytes, random: Random) -> bytes:
    """A cut, flipped bits, a wrong number in front, or a header that holds something else and is sealed again."""
    what = random.randrange(6)
    if what == 0:
        return content[: random.randrange(len(content))]
    if what == 1:
        wrong = bytearray(content)
        for _ in range(random.choice([1, 1, 4])):
            wrong[random.randrange(len(wrong))] ^= 1 << random.randrange(8)
        return bytes(wrong)
    if what == 2:
        start = [*START.unpack_from(content)]
        start[random.randrange(1, 4)] = random.choice([0, 1, 2, 3, 65535])
        wrong = START.pack(*start) + content[START.size : -CHECK.size]
        return wrong + CHECK.pack(zlib.crc32(wrong))
    header = json.loads(content[START.size :][: START.unpack_from(content)[2]])
    if what == 3:
        return sealed(content, random.choice([b"", b"{", b"[]", b"3", b"\xff", b"[" * 20000, b"9" * 5000, b"{}", b"null"]))
    if what == 4:  # sealed again behind a body that is spoilt
        place = START.size + START.unpack_from(content)[2] + random.randrange(24)
        wrong = bytearray(content[: -CHECK.size])
        wrong[place] ^= 1 << random.randrange(8)
        return bytes(wrong) + CHECK.pack(zlib.crc32(wrong))
    inner = random.choice([header, header["spec"], header["coding"], header["environment"]])
    key = random.choice([*sorted(inner), "more"])
    if random.random() < 0.2:
        inner.pop(key, None)
    else:
        inner[key] = random.choice(VALUES)
    return sealed(content, header)


def test_damaged_token_files(coded, fuzzer, tmp_path, scale):
    models, tokens, content = coded
    path = tmp_path / "file.lgq"

    def read(path: Path) -> torch.Tensor:
        file = read_token_file(path)
        return torch.cat([decompress(models, file, batch, str(path)) for batch in range(len(file.batches))] or [tokens[:0]])

    for number in range(125 * scale):
        wrong = spoilt(content, fuzzer.random(number))
        path.write_bytes(wrong)
        found = fuzzer.attempt(number, read, path)
        fuzzer.require(number, found is None or torch.equal(found, tokens), "gives other tokens than went in")
    path.write_bytes(sealed(content, asdict(read_back(content, path).header)))
    assert torch.equal(read(path), tokens), "even a file that is only sealed again is refused"


def read_back(content: bytes, path: Path) -> TokenFile:
    path.write_bytes(content)
    return read_token_file(path)


def other_json(path: Path, random: Random) -> None:
    if random.random() < 0.3:
        path.write_bytes(random.choice([b"", b"{", b"[]", b"3", b"null", b"\xff", b"[" * 20000, path.read_bytes()[:-9]]))
        return
    values = json.loads(path.read_text())
    inner = random.choice([values, *(value for value in values.values() if isinstance(value, dict))])
    key = random.choice([*sorted(inner), "more"])
    if random.random() < 0.3:
        inner.pop(key, None)
    else:
        inner[key] = random.choice(VALUES)
    path.write_text(json.dumps(values))


def other_bytes(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    if random.random() < 0.5:
        content = content[: random.randrange(len(content) + 1)]
    for _ in range(random.choice([1, 5]) if content else 0):
        content[random.randrange(len(content))] = random.randrange(256)
    path.write_bytes(content)


def other_shard(path: Path, random: Random) -> None:
    """A shard of tokens or labels that cannot be, or of another width."""
    shard = path.parent
    rows = datasets.Dataset.load_from_disk(str(shard)).to_dict()
    assert isinstance(rows, dict)
    name = random.choice(["tokens", "mirrored", "label", "index"])
    value = random.choice([-1, 16, 10, 65535, 2**31 - 1])
    if random.random() < 0.3:
        rows.pop(name)
    elif name in ("tokens", "mirrored"):
        rows[name] = [[value, *row[1:]] if random.random() < 0.9 else row[1:] for row in rows[name]]
    else:
        rows[name] = [value for _ in rows[name]]
    shutil.rmtree(shard)
    datasets.Dataset.from_dict(rows).save_to_disk(str(shard))


def test_damaged_token_stores(chain, fuzzer, tmp_path, scale):
    spec = TokenStore(chain.tokens).spec

    def read(path: Path) -> None:
        store = TokenStore(path)
        store.code_vectors()
        for split in ("train", "validation"):
            store.batch(split, range(store.images(split)))
        for tokens, labels in store.training_batches(0, 40, 8, 0):
            assert tokens.min() >= 0 and tokens.max() < max(spec.sizes), "a token that cannot be"
            assert labels.min() >= 0 and labels.max() < store.num_classes, "a label that cannot be"

    for number in range(40 * scale):
        random = fuzzer.random(number)
        folder = tmp_path / str(number)
        shutil.copytree(chain.tokens, folder)
        damage, pattern = random.choice(
            [
                *[(other_json, "*store.json"), (other_json, "identity.json"), (other_json, "**/state.json")],
                *[(other_json, "**/dataset_info.json"), (other_bytes, "**/*.arrow"), (other_bytes, "codebook.safetensors")],
                *[(other_shard, "train/*/state.json"), (lambda path, random: path.unlink(), "**/*")],
                (lambda path, random: shutil.copytree(path.parent, path.parent.with_name("00099")), "train/*/state.json"),
            ]
        )
        path = random.choice(sorted(path for path in folder.glob(pattern) if path.is_file()))
        damage(path, random)
        fuzzer.attempt(f"{number} {path.relative_to(folder)}", read, folder)
        shutil.rmtree(folder)
