"""Pictures of every mode and format, whole and damaged, through folders of data and the commands that edit."""

from __future__ import annotations

import gc
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from pipeline.core.data.decode import decode_image
from pipeline.core.data.folder import folder
from pipeline.core.data.images import ImageDataset, OrderedImages, UnreadableImages, image_batches, ordered_batches
from pipeline.core.errors import UserError
from pipeline.editing_command import read_picture

COLOUR = (200, 100, 50)
GREY = round(0.299 * COLOUR[0] + 0.587 * COLOUR[1] + 0.114 * COLOUR[2])
GREYS = (GREY, GREY, GREY)


def plain(mode: str) -> Callable[[tuple[int, int]], Image.Image]:
    return lambda size: Image.new("RGB", size, COLOUR).convert(mode)


def sixteen_bits(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.full((size[1], size[0]), GREY * 257, np.uint16))


def transparent(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGBA", size, (*COLOUR, 0))


# what makes a picture of one colour, its format, and the colour that comes out
KINDS: dict[str, tuple[Callable[[tuple[int, int]], Image.Image], str, tuple[int, int, int]]] = {
    **{f"RGB {form}": (plain("RGB"), form, COLOUR) for form in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF")},
    "palette": (plain("P"), "PNG", COLOUR),
    "palette GIF": (plain("P"), "GIF", COLOUR),
    "grey": (plain("L"), "PNG", GREYS),
    "grey JPEG": (plain("L"), "JPEG", GREYS),
    "grey with alpha": (plain("LA"), "PNG", GREYS),
    "16 bits": (sixteen_bits, "PNG", GREYS),
    "16 bits TIFF": (sixteen_bits, "TIFF", GREYS),
    "CMYK": (plain("CMYK"), "JPEG", COLOUR),
    "CMYK TIFF": (plain("CMYK"), "TIFF", COLOUR),
    "with alpha": (plain("RGBA"), "PNG", COLOUR),
    "transparent": (transparent, "PNG", (255, 255, 255)),
    "YCbCr": (plain("YCbCr"), "TIFF", COLOUR),
}


def encoded(kind: str, size: tuple[int, int], animated: bool = False) -> bytes:
    make, form, _ = KINDS[kind]
    file = io.BytesIO()
    moves = animated and form in ("GIF", "PNG", "WEBP", "TIFF")
    frames = {"save_all": True, "append_images": [Image.new("RGB", size, (0, 0, 255))]} if moves else {}
    make(size).save(file, form, **frames)
    return file.getvalue()


def png(width: int, height: int, depth: int = 8, kind: int = 2, data: bytes = b"") -> bytes:
    """A PNG whose header says what it likes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 60, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


STRANGE: dict[str, bytes] = {
    "nothing": b"",
    "a text": b"this is no picture\n" * 20,
    "HTML": b"<!DOCTYPE html><html></html>",
    "a PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n",
    "an SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="1" height="1"/></svg>',
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(%pipe%touch executed) (w) file\n",
    "a signature": b"\x89PNG\r\n\x1a\n",
    "a header": png(8, 8)[:33],
    "a bomb of 10^10 pixels": png(100_000, 100_000),
    "a side of 2^31": png(2**31 - 1, 2**31 - 1),
    "no pixels": png(0, 0),
    "no rows": png(5, 0),
    "a depth of 3": png(8, 8, depth=3),
    "a kind of 9": png(8, 8, kind=9),
    "no data": png(8, 8),
    "much data": png(8, 8, data=b"\0" * 10**6),
    "a BMP of 10^10 pixels": bmp(100_000, 100_000),
    "a BMP of a negative width": bmp(-5, 5),
    "a PPM of words": b"P6\nten ten\n255\n",
    "a PPM of 10^12 pixels": b"P6\n1000000 1000000\n255\n",
    "a PPM without an end": b"P3\n4 4\n255\n" + b"1 " * 10,
    "a GIF of nothing": b"GIF89a" + b"\0" * 7,
    "a TIFF in a circle": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "floats": (lambda file: (Image.new("F", (8, 8)).save(file, "TIFF"), file.getvalue())[1])(io.BytesIO()),
}


def damaged(content: bytes, random: Random) -> bytes:
    """A cut or some flipped bytes; sometimes both."""
    spoilt = bytearray(content)
    if random.random() < 0.5:
        spoilt = spoilt[: random.randrange(len(spoilt))]
    for _ in range(random.choice([0, 1, 3, 30]) if spoilt else 0):
        # most of them near the beginning, where the sizes are
        spoilt[min(int(random.expovariate(1 / 60)), len(spoilt) - 1)] = random.randrange(256)
    return bytes(spoilt)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_is_what_it_shows(kind, tmp_path):
    for size in ((40, 40), (17, 90), (8, 8), (3, 5), (1, 1), (600, 2)):
        file = tmp_path / "picture.jpg"  # whatever its name says
        file.write_bytes(encoded(kind, size))
        pixels = decode_image({"bytes": None, "path": str(file)}, 16)
        assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8
        assert np.abs(pixels.reshape(-1, 3).mean(0) - KINDS[kind][2]).max() < 8
        assert np.array_equal(read_picture(file, 16).permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize("kind", ["RGB GIF", "RGB PNG", "RGB WEBP", "RGB TIFF"])
def test_of_an_animation_the_first_frame_counts(kind):
    pixels = decode_image({"bytes": encoded(kind, (32, 32), animated=True), "path": None}, 16)
    assert np.abs(pixels.reshape(-1, 3).mean(0) - COLOUR).max() < 8


def test_damaged_pictures(fuzzer, tmp_path, scale):
    names, file = list(KINDS), tmp_path / "picture.png"
    for number in range(200 * scale):
        random = fuzzer.random(number)
        strange = list(STRANGE)[number] if number < len(STRANGE) else None
        if strange is None:
            kind = random.choice(names)
            content = damaged(encoded(kind, (random.randrange(1, 60), random.randrange(1, 60)), random.random() < 0.1), random)
        else:
            kind, content = strange, STRANGE[strange]
        file.write_bytes(content)
        pixels = fuzzer.attempt(f"{number} {kind}", read_picture, file, 16)
        fuzzer.require(number, pixels is None or tuple(pixels.shape) == (3, 16, 16), "has another shape")
        fuzzer.require(kind, pixels is None or strange in (None, "much data"), "is read as a picture")


def test_folders_of_data_with_damaged_pictures(fuzzer, tmp_path, scale):
    """Readable ones come out in their order, the others are named; a share that is too large stops with one line."""
    for number in range(25 * scale):
        random = fuzzer.random(number)
        root, good = tmp_path / str(number), []
        for name in ("a", "é b"):
            place = root / "train" / name
            place.mkdir(parents=True)
            for row in range(4):
                file, whole = place / f"{row}.png", random.random() < 0.6
                file.write_bytes(encoded("RGB PNG", (20, 16)) if whole else random.choice(list(STRANGE.values())))
                good.append(whole)
            for odd in random.sample(["folder.png", "pipe.png", "link.png", "notes.txt", ".hidden.png"], 2):
                make_odd(place / odd)
            if random.random() < 0.1:
                make_odd(place / "\udcff.png")

        def read(root: Path, share: float, train: bool) -> list[str]:
            data = folder(str(root), validation_share=0.3)
            counted = UnreadableImages(share, at_least=1)
            if train:
                batches = image_batches(ImageDataset(data.train, 16, True, 0), 0, 12, 4)
            else:
                batches = ordered_batches(OrderedImages(data.train, 16), 3)
            names: list[str] = []
            for batch in batches:
                assert len(batch["image"]) == len(batch["label"]) and (not train or len(batch["image"]) == 4)
                counted.update(batch)
                names += batch["unreadable"]
            return names

        share, train = random.choice([0.0, 0.6, 1.0, 1.0]), random.random() < 0.5
        names = fuzzer.attempt(f"{number} {share} {train}", read, root, share, train)
        if names and share == 0.0:
            fuzzer.fault(number, "goes on with unreadable images")


def make_odd(path: Path) -> None:
    """What stands in a folder of pictures and is none."""
    if path.name == "folder.png":
        path.mkdir()
    elif path.name == "pipe.png":
        os.mkfifo(path)
    elif path.name == "link.png":
        path.symlink_to("nothing.png")
    else:
        path.write_bytes(b"no picture")


def test_a_worker_that_finds_nothing_readable_says_so_in_one_line(tmp_path):
    place = tmp_path / "train" / "a"
    place.mkdir(parents=True)
    for row in range(4):
        (place / f"{row}.png").write_bytes(b"no picture")
    dataset = ImageDataset(folder(str(tmp_path)).train, 16, False, 0)
    with pytest.raises(UserError, match=r"^training images: none of 3 can be read") as caught:
        list(image_batches(dataset, 0, 4, 2, workers=1))
    said = str(caught.value)
    del caught  # whose frames hold the loader, and so its process
    gc.collect()
    assert "Traceback" not in said
