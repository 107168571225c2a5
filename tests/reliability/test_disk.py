"""Full disks, folders that may not be changed and files that vanish: one clear line, and what was there before stays whole.

A limit on the size of files stands for a full disk: writes fail in the middle as they do there, and no right is needed.
Where this user may mount, a small file system is really full, and one really read-only.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.api import TokenStore, load_pipeline, load_prior, load_tokenizer
from pipeline.core.errors import UserError
from pipeline.core.files import new_folder, write_json
from pipeline.core.run_folder import RunFolder
from pipeline.core.snapshot import load_newest_snapshot, load_snapshot, save_snapshot, snapshots
from pipeline.core.token_store import TokenStoreWriter
from pipeline.sampling_command import save_grid

STAGE1, STAGE2, TOKENIZE = "stage1_tokenizer.train", "stage2_prior.train", "pipeline.tokenize_dataset"
WEIGHTS = "diffusion_pytorch_model.safetensors"
STANDARD_ERROR = 8192  # bytes that a command may still write: its own messages
HERE = Path(__file__).parent


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond this size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def store_writer(folder: Path, chain: Any) -> Callable[[], object]:
    """Writes a shard, the code vectors and the summary of a store."""
    store = TokenStore(chain.tokens)
    tokens, labels = store.batch("train", range(16))

    def write() -> None:
        writer = TokenStoreWriter(folder / "tokens", store.identity)
        writer.open()
        for split in ("train", "validation"):
            if not writer.has(split, 0):
                writer.write(split, 0, tokens, tokens, labels, torch.arange(16))
        writer.finish([], store.code_vectors())

    return write


def pipeline_writer(folder: Path, chain: Any) -> Callable[[], object]:
    model = load_pipeline(chain.maskgit)

    def write() -> None:
        with new_folder(folder / "pipeline") as aside:
            model.save_pretrained(aside)

    return write


WRITERS: dict[str, Callable[[Path, Any], Callable[[], object]]] = {
    "snapshot": lambda folder, chain: (
        lambda: save_snapshot(folder, 7, {"a": torch.ones(9000), "b": [torch.ones(5)], "c": "x" * 500})
    ),
    "JSON": lambda folder, chain: lambda: write_json(folder / "deep" / "file.json", {"a": list(range(2000))}),
    "statistics": lambda folder, chain: lambda: RunFolder(folder).log({"images": 1, "text": "x" * 5000}),
    "picture": lambda folder, chain: lambda: save_grid(torch.arange(3072).view(1, 3, 32, 32).byte(), folder / "a.png", 1),
    "tokens": store_writer,
    "pipeline": pipeline_writer,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_write_may_fail(kind, chain, tmp_path):
    """From no byte at all to one byte too few, the error names a place in the folder, and nothing is left half-written."""
    (tmp_path / "whole").mkdir()
    write = WRITERS[kind](tmp_path / "whole", chain)
    write()
    largest = max(map(len, content(tmp_path / "whole").values()))
    sizes = sorted({0, 1, 8, *(largest * part // 8 for part in range(1, 8)), largest - 1})
    for size in sizes:
        folder = tmp_path / "failed"
        folder.mkdir()
        write = WRITERS[kind](folder, chain)
        with largest_file(size), pytest.raises((OSError, UserError)) as caught:
            write()
        assert str(folder) in str(caught.value), (size, caught.value)
        found = content(folder)
        if kind == "statistics":
            assert all(len(text) <= size for text in found.values())  # a line that is cut short is passed over
            (folder / "stats.jsonl").unlink(missing_ok=True)
        else:
            whole = content(tmp_path / "whole")
            wrong = [name for name, text in found.items() if name != "tokens/codebook.safetensors" and text != whole.get(name)]
            assert not [name for name in wrong if not name.endswith(".arrow") and "state.json" not in name], (size, wrong)
            assert "tokens/store.json" not in found or found == whole
        write()  # once there is space, what was begun is finished
        assert content(folder).keys() == content(tmp_path / "whole").keys()
        shutil.rmtree(folder)


def test_a_failed_write_leaves_the_older_one(chain, tmp_path):
    save_snapshot(tmp_path / "snapshots", 7, {"a": torch.ones(9000)})
    write_json(tmp_path / "file.json", [1])
    picture = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    save_grid(picture, tmp_path / "a.png", 1)
    before = content(tmp_path)
    with largest_file(60):
        for write in (
            lambda: save_snapshot(tmp_path / "snapshots", 7, {"a": torch.zeros(9000)}),
            lambda: save_snapshot(tmp_path / "snapshots", 8, {"a": torch.zeros(9000)}, keep=1),
            lambda: write_json(tmp_path / "file.json", list(range(1000))),
            lambda: save_grid(picture, tmp_path / "a.png", 4),
        ):
            with pytest.raises((OSError, UserError)):
                write()
    assert content(tmp_path) == before


def full(size: int = STANDARD_ERROR, **at: str) -> dict[str, str]:
    """The environment of a command that finds its disk full, from the start or FULL_AT so many images."""
    return {"RUN_BEFORE": str(HERE / "full_disk.py"), "LARGEST_FILE": f"{size}", **at}


def require_one_line(result: Any, *says: str) -> None:
    assert result.code == 2, result.err
    assert len(result.error_lines) == 1 and result.error_lines[0].startswith("error: "), result.err
    assert all(word in result.error_lines[0] for word in says), result.err


@pytest.mark.parametrize("kind", ["tokenizer", "maskgit"])
def test_a_training_whose_disk_fills_goes_on_when_there_is_space(kind, chain, commands, settings, tmp_path):
    run = tmp_path / "run"
    stage2 = (STAGE2, f"run={run}", f"tokens={chain.tokens}", f"prior={kind}", *settings.stage2)
    command = (STAGE1, f"run={run}", *settings.stage1) if kind == "tokenizer" else stage2
    failed = commands.run(*command, environment=full(FULL_AT="40"))  # after the first snapshot
    require_one_line(failed, str(run), "File too large; free some space")
    state = load_newest_snapshot(run / "snapshots")
    assert state is not None and state["images_seen"] == 40
    assert [load_snapshot(path)["images_seen"] for path in snapshots(run / "snapshots")]  # whole, all of them
    commands.succeed(*command)
    part = "tokenizer" if kind == "tokenizer" else "prior"
    ours, theirs = (load_file(folder / part / WEIGHTS) for folder in (run, getattr(chain, kind)))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_run_folder_that_vanishes_stops_the_training_with_one_line(commands, settings, tmp_path):
    run = tmp_path / "run"
    command = (STAGE1, f"run={run}", *settings.stage1, "images=800000", "report_every=8", "snapshot_every=400000")
    pid = commands.start(*command)
    commands.poll(lambda: (run / "stats.jsonl").exists(), pid=pid)
    run.rename(tmp_path / "elsewhere")
    require_one_line(commands.wait(pid), "stats.jsonl", "No such file or directory; put it back")


def test_commands_whose_disk_is_full(chain, commands, tmp_path):
    pixels = torch.randint(256, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    common = ["--pipeline", chain.maskgit, "--class", "star"]
    out = tmp_path / "out"
    lines = {
        "tokens": [TOKENIZE, "--tokenizer", chain.tokenizer, "--out", out / "tokens"],
        "sample.png": ["pipeline.sample", *common, "--seeds", "0-8", "--zoom", 40, "--out", out / "sample.png"],
        "edit.png": ["pipeline.edit", tmp_path / "photo.png", *common, "--vary", 0.5, "--zoom", 90, "--out", out / "edit.png"],
        "exported": ["pipeline.export", chain.ar, "--out", out / "exported"],
        "language_model": ["pipeline.export", chain.ar, "--transformers", "--out", out / "language_model"],
    }
    for name, line in lines.items():
        require_one_line(commands.run(*line, environment=full()), str(out / name))
        assert not [path for path in out.rglob("*") if path.suffix in (".partial", ".png")]
        assert not (out / "exported").exists() and not (out / "tokens/store.json").exists()
    commands.succeed(*lines["tokens"])
    assert TokenStore(out / "tokens").images("train") == 120
    commands.succeed(*lines["exported"])
    load_pipeline(out / "exported")


def test_a_coded_file_is_whole_or_absent(chain, commands, tmp_path):
    for number in range(40):  # so many that the file is larger than what may still be written
        Image.effect_noise((16, 16), 90 + number).save(tmp_path / f"{number}.png")
    line = [
        "pipeline.compress",
        "encode",
        *sorted(tmp_path.glob("*.png")),
        "--pipeline",
        chain.maskgit,
        "--out",
        tmp_path / "file.lgq",
    ]
    require_one_line(commands.run(*line, environment=full(600)), "file.lgq: cannot be written (File too large)")
    assert not list(tmp_path.glob("*.lgq*")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("out", ["/dev/null/x", "/proc/x", "photo.png/x", "photo.png"])
def test_what_cannot_be_written_is_said_before_the_work(out, chain, commands, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.png")
    before = (tmp_path / "photo.png").read_bytes()
    common = ["--pipeline", chain.maskgit, "--batch-size", 2]
    lines = [["pipeline.compress", "measure", *common, "--out", f"{out}.json"]] if out != "photo.png" else []
    if out != "photo.png":  # a file there is may be replaced by one of its kind
        lines.append(["pipeline.compress", "encode", "photo.png", *common, "--out", out])
        lines.append(["pipeline.sample", "--pipeline", chain.maskgit, "--class", "star", "--out", f"{out}.png"])
    lines.append(["pipeline.export", chain.maskgit, "--out", out])
    for line in lines:
        result = commands.run(*line, folder=tmp_path)
        require_one_line(result)
        assert "%|" not in result.err, "it has worked before it said so"
    assert (tmp_path / "photo.png").read_bytes() == before


def test_only_a_file_of_the_same_kind_is_replaced(chain, commands, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.png")
    Image.new("L", (16, 16), 255).save(tmp_path / "white.png")
    (tmp_path / "text.png").write_text("precious")
    (tmp_path / "text.json").write_text("precious")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "00000.png").write_text("precious")
    common = ["--pipeline", chain.maskgit]
    commands.succeed("pipeline.compress", "encode", "photo.png", *common, "--out", "file.lgq", folder=tmp_path)
    before = content(tmp_path)
    for line in (
        ["pipeline.edit", "photo.png", *common, "--class", "star", "--vary", 1, "--out", "pictures/../photo.png"],
        ["pipeline.edit", "photo.png", *common, "--class", "star", "--mask", "white.png", "--out", "white.png"],
        ["pipeline.sample", *common, "--class", "star", "--out", "text.png"],
        ["pipeline.compress", "encode", "photo.png", *common, "--out", "photo.png"],
        ["pipeline.compress", "encode", "photo.png", *common, "--out", "/dev/null"],
        ["pipeline.compress", "decode", "file.lgq", *common, "--out", "pictures"],
        ["pipeline.compress", "measure", *common, "--images", 2, "--out", "text.json"],
    ):
        require_one_line(commands.run(*line, folder=tmp_path), "choose another --out")
    assert content(tmp_path) == before and Path("/dev/null").is_char_device()
    commands.succeed("pipeline.compress", "encode", "white.png", *common, "--out", "file.lgq", folder=tmp_path)
    commands.succeed("pipeline.sample", *common, "--class", "star", "--out", "photo.png", folder=tmp_path)
    after = content(tmp_path)
    assert {name for name in after if after[name] != before.get(name)} == {"file.lgq", "photo.png"}


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts small file systems of its own; skips where this user may not."""
    places: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"mounted{len(places)}"
        place.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        if os.name != "posix" or subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("mounting a file system is not allowed here")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_is_really_full(chain, commands, settings, mounted):
    small = mounted("size=256k")
    training = (STAGE1, f"run={small / 'run'}", *settings.stage1)
    require_one_line(commands.run(*training), "No space left on device; free some space")
    assert all(load_snapshot(path) for path in snapshots(small / "run" / "snapshots"))
    shutil.rmtree(small / "run")
    (small / "filling").write_bytes(b"\0" * 180_000)
    line = [TOKENIZE, "--tokenizer", chain.tokenizer, "--out", small / "tokens", "--shard-images", 16]
    require_one_line(commands.run(*line), "No space left on device; free some space")
    (small / "filling").unlink()
    commands.succeed(*line)
    assert TokenStore(small / "tokens").images("train") == 120


def test_a_folder_that_is_really_read_only(chain, commands, settings, mounted, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.png")
    place = mounted("ro")
    common = ["--pipeline", chain.maskgit]
    for line in (
        [STAGE1, f"run={place / 'run'}", *settings.stage1],
        [STAGE2, f"run={place / 'run'}", f"tokens={chain.tokens}", *settings.stage2],
        [TOKENIZE, "--tokenizer", chain.tokenizer, "--out", place / "tokens"],
        ["pipeline.sample", *common, "--class", "star", "--out", place / "a.png"],
        ["pipeline.edit", tmp_path / "photo.png", *common, "--class", "star", "--vary", 1, "--out", place / "a.png"],
        ["pipeline.compress", "encode", tmp_path / "photo.png", *common, "--out", place / "a.lgq"],
        ["pipeline.compress", "measure", *common, "--images", 2, "--out", place / "a.json"],
        ["pipeline.export", chain.maskgit, "--out", place / "exported"],
    ):
        result = commands.run(*line)
        require_one_line(result, str(place))
        assert "%|" not in result.err, "it has worked before it said so"


@pytest.mark.parametrize("name", ["tokenizer", "maskgit"])
def test_models_are_read_from_a_folder_that_is_read_only(name, chain, mounted):
    place = mounted("size=4m")
    shutil.copytree(getattr(chain, name), place / name)
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    load = load_tokenizer if name == "tokenizer" else load_prior
    assert load(place / name).spec == load(getattr(chain, name)).spec
