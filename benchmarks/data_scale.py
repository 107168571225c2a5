"""What the number of images costs in memory and start-up:  python -m benchmarks.data_scale

From ten thousand to 1.3 million images: listing a folder of 1000 classes while it changes, so that nothing is remembered, then
the first and the second time; the order of training images, into a second epoch; tokenization by its own code, with a tiny
tokenizer and at most three shards of the images; a token store of 64 tokens an image, written from random numbers, opened, and
read for an epoch of a prior's batches. The images are hard links to a picture of 8 x 8 pixels, one picture a class. Memory is
the peak beyond what lay there before: `private` is the process's own, `mapped` are pages of files that it read, which the
system keeps while nobody needs the memory. Ends with an error where private memory is above a limit for any number of images,
or grows with it, or where the second start takes long. Writes results/data_scale.json and the plot of it,
results/data_scale.png. Needs Linux, a gigabyte of disk, and five minutes of a core.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.data_scale_plot import draw
from benchmarks.measuring import Memory, command_line, device_name, measured_by, resident
from pipeline.core.command import run_command
from pipeline.core.data.images import ImageDataset
from pipeline.core.data.listing import REMEMBERED
from pipeline.core.data.sources import load_data
from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.core.launch import start_accelerator
from pipeline.core.token_store import TokenIdentity, TokenStore, TokenStoreWriter, shards_of
from pipeline.tokenization import Job, encode_shards
from stage1_tokenizer.backbone import Backbone
from stage1_tokenizer.tokenizer import Tokenizer

CLASSES = 1000
UNREMEMBERED = REMEMBERED - 2 * CLASSES  # the most: each class has an image of validation too
SIZES = (10_000, 40_000, UNREMEMBERED, 160_000, 640_000, 1_300_000)
SHARD_IMAGES = 8192
ENCODED = 3  # shards, at most: the rest of the images is listed only
SPEC = {"sizes": [16_384], "scales": [[8, 8]], "image_size": [128, 128]}
BATCH = 256
TRAINED = 256  # pixels: too many for the images to be kept in memory
HOUR = 3600
FLAT = 32  # bytes an image: of its label and of two epochs' orders it has 18
MOST = 60.0  # MB
SECONDS = 5.0

Row = dict[str, Any]


def main() -> None:
    """Parse the command line, then measure."""
    parser = command_line("data_scale", __doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N", help="images (default: up to 1.3 million)")
    parser.add_argument("--work", type=Path, help="a folder for the data made here (default: the system's, for such)")
    parser.add_argument("--out", type=Path, default=Path("results/data_scale.json"), help="default: results/data_scale.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="data_scale-", dir=arguments.work) as work:
        result = measure(sorted(arguments.sizes), Path(work))
    write_json(arguments.out, result)
    draw(result, arguments.out.with_suffix(".png"))
    wrong = failures(result)
    if wrong:
        raise UserError(f"{arguments.out}: {'; '.join(wrong)}")


def measure(sizes: list[int], work: Path) -> Row:
    """All rows, for a tree of images that grows."""
    os.environ["LGQ_CACHE"] = str(work / "cache")
    torch.set_num_threads(1)
    rows: list[Row] = []
    for images in sizes:
        print(f"{images} images: {grow(work / 'tree', images):.0f} s to make", flush=True)
        for part in (changing_start, first_start, second_start, store):
            with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as process:  # not to import everything again
                found = process.submit(part, images, work).result()
            for row in found:
                figures = "{private_mb:8.1f} MB private {mapped_mb:8.1f} MB mapped {seconds:8.2f} s".format(**row)
                print(f"  {row['what']:14} {figures}", flush=True)
            rows += [{"images": images} | row for row in found]
        shutil.rmtree(work / "tokens")
    limits = {"private_mb": MOST, "bytes_per_image": FLAT, "second_start_seconds": SECONDS}
    settings = {"classes": CLASSES, "shard_images": SHARD_IMAGES, "encoded_shards": ENCODED, "spec": SPEC, "batch": BATCH}
    return {
        "what": __doc__,
        "device": device_name("cpu"),
        "versions": measured_by(),
        "settings": settings | {"limits": limits},
        "bytes_per_image": {what: growth(rows, what) for what in dict.fromkeys(row["what"] for row in rows)},
        "rows": rows,
    }


def growth(rows: list[Row], what: str) -> float:
    """Bytes of private memory for each image more, from the fewest to the most."""
    curve = sorted((row["images"], row["private_mb"]) for row in rows if row["what"] == what)
    (fewest, least), (most, largest) = curve[0], curve[-1]
    return round((largest - least) * 1e6 / max(most - fewest, 1), 1)


def failures(result: Row) -> list[str]:
    """What is not as promised."""
    rows = result["rows"]
    most = max(row["images"] for row in rows)
    seconds = next(row["seconds"] for row in rows if (row["what"], row["images"]) == ("list again", most))
    large = ["{what} takes {private_mb} MB for {images} images".format(**row) for row in rows if row["private_mb"] > MOST]
    grown = [f"{what} takes {found} bytes an image" for what, found in result["bytes_per_image"].items() if found > FLAT]
    return large + grown + ([f"the second start takes {seconds} s"] if seconds > SECONDS else [])


def grow(tree: Path, images: int) -> float:
    """Let a tree of class folders have that many training images, and one of validation a class; gives the seconds it took."""
    start = time.perf_counter()
    for label in range(CLASSES):
        train, validation = (tree / split / f"n{label:08d}" for split in ("train", "val"))
        for folder in (train, validation):
            if not folder.exists():
                folder.mkdir(parents=True)
                Image.radial_gradient("L").resize((8, 8)).save(folder / "0.bmp")
        for number in range(len(os.listdir(train)), images // CLASSES):
            os.link(train / "0.bmp", train / f"n{label:08d}_{number}.bmp")
        long_ago = time.time() - HOUR
        for folder in (train, validation):
            os.utime(folder, (long_ago, long_ago))
    return time.perf_counter() - start


@contextmanager
def measured(rows: list[Row], what: str) -> Iterator[None]:
    """Add a row of what the block takes."""
    memory, mapped, start = Memory("cpu"), resident("RssFile"), time.perf_counter()
    yield
    seconds, peak = time.perf_counter() - start, memory.peak()
    mapped = max(0, resident("RssFile") - mapped)
    figures = {"private_mb": max(0, peak - mapped) / 1e6, "mapped_mb": mapped / 1e6}
    rows.append({"what": what, **{name: round(value, 2) for name, value in figures.items()}, "seconds": round(seconds, 3)})


def changing_start(images: int, work: Path) -> list[Row]:
    """Listing a folder that may still change."""
    rows: list[Row] = []
    changing = work / "tree/train/n00000000"
    before, soon = os.stat(changing).st_mtime, time.time() + HOUR
    os.utime(changing, (soon, soon))
    with measured(rows, "list changing"):
        data = load_data("folder", path=str(work / "tree"))
    assert len(data.train) == images and not data.train.cache_files
    os.utime(changing, (before, before))
    return rows


def first_start(images: int, work: Path) -> list[Row]:
    """Listing a folder that was never seen."""
    rows: list[Row] = []
    with measured(rows, "list"):
        data = load_data("folder", path=str(work / "tree"))
    assert len(data.train) == images  # and the files are still mapped when their pages are counted
    return rows


def second_start(images: int, work: Path) -> list[Row]:
    """Listing it again, then what training and tokenization do with it."""
    rows: list[Row] = []
    with measured(rows, "list again"):
        data = load_data("folder", path=str(work / "tree"))
    n = len(data.train)
    with measured(rows, "train order"):
        dataset = ImageDataset(data.train, TRAINED, flip=True, seed=0)
        for position in range(n - 64, n + 64):  # into the second epoch
            dataset[position]
    torch.manual_seed(0)
    backbone = Backbone(patch=4, channels=(16,), layers=1, attention=False)
    tokenizer = Tokenizer.create(8, backbone, {"name": "fsq", "levels": [8, 8]})
    with measured(rows, "tokenize"):
        shards = shards_of({"train": n, "validation": 0}, SHARD_IMAGES)
        every = -(-len(shards) // ENCODED)
        job = Job(None, None, (), None, BATCH, SHARD_IMAGES, True, "no", 0, 0.01)
        writer = TokenStoreWriter(work / "encoded", identity(tokenizer.spec.to_dict()))
        accelerator = start_accelerator("no", "none", work / "encoded")
        encode_shards(job, tokenizer.eval(), writer, data, shards[::every], accelerator)
    rows[-1]["encoded"] = sum(shard.stop - shard.start for shard in shards[::every])
    shutil.rmtree(work / "encoded")
    return rows


def identity(spec: Row) -> TokenIdentity:
    names = [f"{label}" for label in range(CLASSES)]
    return TokenIdentity(spec, "-", "0" * 64, {"name": "random"}, "0", "none", True, SHARD_IMAGES, names, names, names)


def store(images: int, work: Path) -> list[Row]:
    """Random tokens into a store; opening it; an epoch of a prior's batches."""
    rows: list[Row] = []
    with measured(rows, "write store"):
        writer = TokenStoreWriter(work / "tokens", identity(SPEC))
        writer.open()
        for shard in shards_of({"train": images, "validation": BATCH}, SHARD_IMAGES):
            index = torch.arange(shard.start, shard.stop)
            tokens = torch.randint(SPEC["sizes"][0], (2, len(index), 64, 1))
            writer.write(shard.split, shard.number, tokens[0], tokens[1], index % CLASSES, index)
        written = writer.finish([])
    assert written.images("train") == images
    with measured(rows, "open store"):
        opened = TokenStore(work / "tokens")
    with measured(rows, "epoch of store"):
        for _ in opened.training_batches(0, images, BATCH, seed=0):
            pass
    return rows


if __name__ == "__main__":
    run_command(main)
