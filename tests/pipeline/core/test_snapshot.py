from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from pipeline.core.errors import UserError
from pipeline.core.snapshot import load_newest_snapshot, load_snapshot, save_snapshot, snapshots


def assert_equal(found, expected) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected) and found.dtype == expected.dtype
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected and type(found) is type(expected)


STATE = {
    "images_seen": 7,
    "nothing": None,
    "numbers": [1, 2.5, True, "text"],
    "empty": {},
    "by_number": {0: torch.arange(3), 1: {"a/b": torch.zeros(2), "a": {"b": torch.ones(2)}}},
    "alike": {1: torch.zeros(()), "1": torch.ones(())},
    "half": torch.randn(2, 3).bfloat16(),
    "whole": torch.randn(4, 4).T,
    "none of it": torch.empty(0, 5, dtype=torch.int64),
}


def test_states_come_back(tmp_path):
    shared = torch.randn(3)
    state = STATE | {"tied": [shared, shared, shared[1:]]}
    assert_equal(load_snapshot(save_snapshot(tmp_path, 7, state)), state)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_an_optimizer_goes_on_as_if_nothing_had_happened(tmp_path, kind):
    def steps(model, optimizer, count):
        for number in range(count):
            model(torch.full((1, 3), float(number))).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = kind(model.parameters(), lr=0.1)
    steps(model, optimizer, 3)
    save_snapshot(tmp_path, 3, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    again = nn.Linear(3, 2)
    other = kind(again.parameters(), lr=0.2)
    state = load_newest_snapshot(tmp_path)
    assert state is not None
    again.load_state_dict(state["model"])
    other.load_state_dict(state["optimizer"])
    steps(model, optimizer, 2)
    steps(again, other, 2)
    assert torch.equal(model.weight, again.weight)


def test_a_snapshot_is_a_copy(tmp_path):
    tensor = torch.zeros(2)
    path = save_snapshot(tmp_path, 1, {"tensor": tensor})
    tensor += 1
    assert load_snapshot(path)["tensor"].sum() == 0


def test_the_newest_are_kept_and_come_first(tmp_path):
    assert load_newest_snapshot(tmp_path) is None
    for images in (10, 900, 1000):
        save_snapshot(tmp_path, images, {"images": images}, keep=2)
    assert [int(path.name) for path in snapshots(tmp_path)] == [900, 1000]
    assert load_newest_snapshot(tmp_path) == {"images": 1000}
    save_snapshot(tmp_path, 2000, {"images": 2000}, keep=0)
    assert [int(path.name) for path in snapshots(tmp_path)] == [2000]


def test_leftovers_of_a_killed_writer_are_no_snapshots(tmp_path):
    save_snapshot(tmp_path, 1, {"images": 1})
    (tmp_path / ".000000000002.99.partial").mkdir()
    assert load_newest_snapshot(tmp_path) == {"images": 1}


def flip_byte(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-3]),
    "empty": lambda file: file.write_bytes(b""),
    "missing": lambda file: file.unlink(),
    "flipped": flip_byte,
}


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_snapshot_is_named_and_the_one_before_it_taken(tmp_path, caplog, damage, name):
    for images in (1, 2):
        save_snapshot(tmp_path, images, {"images": images, "tensor": torch.randn(5)})
    DAMAGE[damage](snapshots(tmp_path)[1] / name)
    if (damage, name) == ("flipped", "state.json"):
        return  # its last byte is a line's end: the state is whole
    with caplog.at_level(logging.WARNING):
        state = load_newest_snapshot(tmp_path)
    assert state is not None and state["images"] == 1
    assert f"000000000002/{name}: damaged snapshot" in caplog.text
    DAMAGE[damage](snapshots(tmp_path)[0] / name)
    with pytest.raises(UserError, match=f"000000000002/{name}: damaged snapshot .*no older snapshot is whole: delete"):
        load_newest_snapshot(tmp_path)


def test_what_a_snapshot_cannot_hold_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"a snapshot cannot hold set \(at /a/0\)"):
        save_snapshot(tmp_path, 1, {"a": [{1}]})
    assert snapshots(tmp_path) == []
