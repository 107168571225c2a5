from __future__ import annotations

import hashlib

import pytest

from pipeline.core.errors import UserError
from pipeline.core.files import new_folder, read_json, sha256, write_json, write_text


def test_json_round_trip(tmp_path):
    value = {"a": [1, 2.5, None, "ü"], "b": {}}
    write_json(tmp_path / "deep/er/file.json", value)
    assert read_json(tmp_path / "deep/er/file.json") == value


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe"])
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(UserError, match=f"file.json: not valid JSON \\({len(content)} bytes\\)"):
        read_json(tmp_path / "file.json")


def test_missing_json_is_named(tmp_path):
    with pytest.raises(UserError, match=r"file.json: no such file"):
        read_json(tmp_path / "file.json")


def test_a_text_that_cannot_be_encoded_leaves_the_old_one(tmp_path):
    write_text(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file", "new \ud800")
    assert (tmp_path / "file").read_text() == "old"


def test_a_folder_appears_when_its_block_ends(tmp_path):
    path = tmp_path / "deep/folder"
    with new_folder(path) as aside:
        (aside / "sub").mkdir()
        (aside / "sub/file").write_text("x")
        assert not path.exists() and aside.parent == path.parent
    assert (path / "sub/file").read_text() == "x"
    assert [entry.name for entry in path.parent.iterdir()] == ["folder"]


def test_a_folder_whose_block_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "folder"
    with new_folder(path) as aside:
        (aside / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt), new_folder(path) as aside:
        (aside / "file").write_text("new")
        raise KeyboardInterrupt
    assert (path / "file").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_a_folder_replaces_an_older_one_and_what_killed_writers_left(tmp_path):
    (tmp_path / ".folder.123.partial/x").mkdir(parents=True)
    (tmp_path / ".folder.123.old").mkdir()
    (tmp_path / ".folder2.123.partial").mkdir()
    for text in ("old", "new"):
        with new_folder(tmp_path / "folder") as aside:
            (aside / text).write_text("")
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["new"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".folder2.123.partial", "folder"]


def test_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
