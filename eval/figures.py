"""Pictures of the page: tiles put together, enlarged a whole number of times, inside the page as data addresses."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageChops

SHOWN_SIZE = 64  # pixels on the page that a small tile is enlarged to
GAP = 2  # pixels of the images between tiles
COORDINATES = re.compile(r"(\d+)([NS]) (\d+)([EW])$")


@dataclass(frozen=True)
class Picture:
    """A picture inside the page: a data address, and the size that it is shown at."""

    source: str
    width: int
    height: int
    alt: str


def place(name: str) -> tuple[int, int] | None:
    """Latitude and longitude in degrees at the end of a name."""
    found = COORDINATES.search(name)
    if not found:
        return None
    latitude, north, longitude, east = found.groups()
    return int(latitude) * (1 if north == "N" else -1), int(longitude) * (1 if east == "E" else -1)


def world(places: Sequence[tuple[int, int]], tiles: Sequence[Image.Image]) -> Image.Image:
    """Tiles on a grid of latitude and longitude, whose steps are the smallest distances between places."""
    steps = [_step(sorted({place[axis] for place in places})) for axis in (0, 1)]
    top, left = max(latitude for latitude, _ in places), -180
    width = max(tile.width for tile in tiles)
    rows = round((top - min(latitude for latitude, _ in places)) / steps[0]) + 1
    canvas = Image.new("RGBA", (round(360 / steps[1]) * width, rows * width))
    for (latitude, longitude), tile in zip(places, tiles, strict=True):
        column, row = int((longitude - left) / steps[1]), round((top - latitude) / steps[0])
        canvas.paste(tile.convert("RGBA"), (column * width, row * width))
    return canvas


def _step(values: Sequence[int]) -> int:
    return min((b - a for a, b in pairwise(values)), default=1)


def grid(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Tiles side by side, with transparent gaps."""
    width, height = tiles[0].size
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    canvas = Image.new("RGBA", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP))
    for number, tile in enumerate(tiles):
        canvas.paste(tile.convert("RGBA"), (number % columns * (width + GAP), number // columns * (height + GAP)))
    return canvas


def picture(image: Image.Image, tile: Sequence[int], alt: str) -> Picture:
    """An image as a data address, small tiles enlarged a whole number of times."""
    opaque = image.mode == "RGBA" and not ImageChops.invert(image.getchannel("A")).getbbox()
    buffer = io.BytesIO()
    (image.convert("RGB") if opaque else image).save(buffer, "PNG", optimize=True)
    zoom = max(1, SHOWN_SIZE // max(tile))
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(source, image.width * zoom, image.height * zoom, alt)
