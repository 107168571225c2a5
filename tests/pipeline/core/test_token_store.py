from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pipeline.core.errors import UserError
from pipeline.core.token_spec import TokenSpec
from pipeline.core.token_store import TokenIdentity, TokenStore, TokenStoreWriter

SPEC = TokenSpec(sizes=(70_000, 5), scales=((1, 1), (2, 2)), image_size=(16, 16))
IDENTITY = TokenIdentity(
    spec=SPEC.to_dict(),
    tokenizer="runs/tokenizer",
    tokenizer_sha256="abc",
    data={"name": "shapes"},
    data_fingerprint="f",
    preprocessing="none",
    mirrored=True,
    shard_images=4,
    class_names=["a", "b"],
    class_ids=["a", "b"],
    groups=["a", "b"],
)


def shard_of(start: int, n: int):
    """Tokens, mirrored tokens, labels and indices of n images, all different."""
    tokens = (torch.arange(start, start + n)[:, None, None] * 11 + torch.arange(SPEC.t)[:, None]) * torch.tensor([99, 1])
    tokens %= torch.tensor(SPEC.sizes)
    index = torch.arange(start, start + n)
    return tokens, tokens.flip(1), index % 2, index


@pytest.fixture
def writer(tmp_path):
    writer = TokenStoreWriter(tmp_path / "tokens", IDENTITY)
    writer.open()
    return writer


@pytest.fixture
def store(writer):
    for shard, (start, n) in enumerate([(0, 4), (4, 4), (8, 3)]):
        writer.write("train", shard, *shard_of(start, n))
    writer.write("validation", 0, *shard_of(20, 2))
    return writer.finish(["b.png", "a.png"])


def test_specifications_come_back_and_count():
    assert TokenSpec.from_dict(SPEC.to_dict()) == SPEC
    assert (SPEC.d, SPEC.t, SPEC.grid) == (2, 5, (2, 2))
    assert SPEC.bits_per_image == pytest.approx(5 * (np.log2(70_000) + np.log2(5)))
    for bad in ({"sizes": ()}, {"sizes": (0,)}, {"scales": ()}, {"scales": ((0, 2),)}):
        with pytest.raises(ValueError, match="TokenSpec"):
            dataclasses.replace(SPEC, **bad)


def test_tokens_come_back(store):
    assert (store.spec, store.num_classes, store.unreadable) == (SPEC, 2, ["a.png", "b.png"])
    assert (store.images("train"), store.images("validation")) == (11, 2)
    tokens, mirrored, labels, _ = shard_of(0, 11)
    found, found_labels = store.batch("train", [10, 3, 3])
    assert found.equal(tokens[[10, 3, 3]]) and found_labels.equal(labels[[10, 3, 3]])
    assert found.dtype == found_labels.dtype == torch.int64
    found, _ = store.batch("train", [1, 2], np.array([True, False]))
    assert found.equal(torch.stack([mirrored[1], tokens[2]]))


def test_code_vectors_come_back_or_are_none(writer, store):
    assert store.code_vectors() is None
    tables = [torch.randn(70_000, 3), torch.randn(5, 2)]
    for found, table in zip(writer.finish([], tables).code_vectors(), tables, strict=True):
        assert found.equal(table)
    file = store.path / "codebook.safetensors"
    writer.finish([], [tables[0][1:], tables[1]])
    with pytest.raises(UserError, match="not the codes of"):
        store.code_vectors()
    writer.finish([], tables[:1])
    with pytest.raises(UserError, match=r"codebook\.safetensors: damaged \(KeyError\)"):
        store.code_vectors()
    file.write_bytes(b"")
    with pytest.raises(UserError, match=r"codebook\.safetensors: damaged"):
        store.code_vectors()


def test_small_alphabets_take_two_bytes(tmp_path):
    spec = dataclasses.replace(SPEC, sizes=(65_536, 5))
    identity = dataclasses.replace(IDENTITY, spec=spec.to_dict())
    writer = TokenStoreWriter(tmp_path / "tokens", identity)
    assert writer.features["tokens"].feature.dtype == "uint16"
    writer.open()
    last = torch.full((1, 5, 2), 0) + torch.tensor([65_535, 4])
    for split in ("train", "validation"):
        writer.write(split, 0, last, last, torch.zeros(1).long(), torch.zeros(1).long())
    assert writer.finish([]).batch("train", [0])[0].equal(last)


def test_a_shard_is_whole_or_absent_and_is_not_written_again(writer):
    assert not writer.has("train", 0) and not writer.finished()
    with pytest.raises(ValueError, match="length"):
        writer.write("train", 0, *shard_of(0, 4)[:3], torch.zeros(3).long())  # one index too few
    assert not writer.has("train", 0)
    writer.write("train", 0, *shard_of(0, 4))
    assert writer.has("train", 0) and not writer.has("train", 1) and not writer.has("validation", 0)


def test_gaps_are_the_unreadable_images(writer):
    tokens, mirrored, labels, index = shard_of(0, 4)
    keep = [0, 2]
    writer.write("train", 0, tokens[keep], mirrored[keep], labels[keep], index[keep])
    writer.write("train", 1, *shard_of(4, 0))  # none of this shard could be read
    writer.write("train", 2, *shard_of(8, 2))
    assert writer.has("train", 1)
    assert writer.missing("train", 10) == [1, 3, 4, 5, 6, 7]


def test_another_identity_is_refused(store):
    TokenStoreWriter(store.path, dataclasses.replace(IDENTITY, tokenizer="/elsewhere/tokenizer")).open()  # the same one
    with pytest.raises(UserError, match=r"holds tokens of another tokenizer_sha256, mirrored \(abc, not def\)"):
        TokenStoreWriter(store.path, dataclasses.replace(IDENTITY, tokenizer_sha256="def", mirrored=False)).open()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda path: (path / "store.json").unlink(), "unfinished token store; run the same"),
        (lambda path: (path / "identity.json").unlink(), "no token store here; make one"),
        (lambda path: (path / "identity.json").write_text("{}"), "identity.json: not of this version"),
        (lambda path: (path / "identity.json").write_text(""), "identity.json: not valid JSON"),
        (lambda path: next((path / "train/00001").glob("*.arrow")).write_bytes(b""), "train/00001: damaged shard"),
        (lambda path: next((path / "train/00001").glob("*.arrow")).unlink(), "train/00001: damaged shard"),
        (lambda path: cut(path, 8), r"train/00001: damaged shard \(data-00000-of-00001.arrow: \d+ of \d+ bytes\)"),
        (lambda path: (path / "train/00001/checksums.json").write_text("[]"), "train/00001/checksums.json: damaged"),
        (lambda path: (path / "train/00001/checksums.json").write_text("{}"), r"train/00001: damaged shard \(data-.* not in"),
        (lambda path: (path / "train/00001").rename(path / "gone"), "train: 7 of 11 images found"),
        (lambda path: (path / "validation/00000").rename(path / "gone"), "validation: no shards"),
    ],
)
def test_what_is_not_whole_is_refused(store, spoil, message):
    spoil(store.path)
    with pytest.raises(UserError, match=message):
        TokenStore(store.path)


def cut(path, length):
    file = path / "train/00001/data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:-length])


def test_every_flipped_bit_is_found_by_who_asks(writer, store):
    store = writer.finish([], [torch.randn(70_000, 3), torch.randn(5, 2)])
    assert store.verify() == 4
    files = [*store.path.glob("*/*/*.arrow"), *store.path.glob("*/*/state.json"), store.path / "codebook.safetensors"]
    assert len(files) == 9
    for file in files:
        content = file.read_bytes()
        place = 2 * len(content) // 3
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(UserError, match="not what was written") as error:
            store.verify()
        assert str(file.parent) in str(error.value)
        file.write_bytes(content)
    (store.path / "codebook.safetensors").unlink()
    with pytest.raises(UserError, match=r"codebook\.safetensors: missing"):
        TokenStore(store.path).verify()


def test_a_store_of_an_earlier_version_opens_but_cannot_be_verified(store):
    for file in store.path.rglob("checksums.json"):
        file.unlink()
    assert TokenStore(store.path).images("train") == 11
    with pytest.raises(UserError, match="train/00000: has no checksums"):
        TokenStore(store.path).verify()


def test_no_store_at_all(tmp_path):
    with pytest.raises(UserError, match="nothing: no token store here"):
        TokenStore(tmp_path / "nothing")


def rows(batches):
    return [(tokens.tolist(), labels.tolist()) for tokens, labels in batches]


@pytest.mark.parametrize("start", [0, 8, 40])
def test_processes_together_see_what_one_sees(store, start):
    alone = list(store.training_batches(start, 64, 4, seed=5))
    parts = [list(store.training_batches(start, 64, 4, 5, rank, 2)) for rank in range(2)]
    assert len(alone) == (64 - start) // 4
    for (tokens, labels), *shares in zip(alone, *parts, strict=True):
        assert tokens.equal(torch.cat([share[0] for share in shares]))
        assert labels.equal(torch.cat([share[1] for share in shares]))


def test_a_restart_sees_what_an_uninterrupted_run_sees(store):
    whole = rows(store.training_batches(0, 64, 4, seed=5))
    assert rows(store.training_batches(24, 64, 4, seed=5)) == whole[6:]
    assert rows(store.training_batches(0, 64, 4, seed=6)) != whole
    assert list(store.training_batches(64, 64, 4, seed=5)) == []


def test_an_epoch_has_every_image_once_and_both_views_occur(store):
    tokens, mirrored, _, _ = shard_of(0, 11)
    seen, flipped = [], []
    for batch, _ in store.training_batches(0, 22, 11, seed=1):
        for row in batch:
            plain = [number for number in range(11) if row.equal(tokens[number])]
            flipped.append(not plain)
            seen += plain or [number for number in range(11) if row.equal(mirrored[number])]
    assert sorted(seen[:11]) == sorted(seen[11:]) == list(range(11)) and seen[:11] != seen[11:]
    assert 0 < sum(flipped) < 22


def test_batches_that_processes_cannot_share_are_refused(store):
    with pytest.raises(UserError, match="batch_size: 5 images cannot be shared by 2 processes"):
        next(store.training_batches(0, 10, 5, 0, 0, 2))
