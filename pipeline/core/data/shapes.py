"""Procedural shapes: ten classes that a tiny model learns within seconds, for tests; no source of results.

Low in entropy on purpose: each class has its own two colours, shapes do not turn, and only place and size vary.
"""

from collections.abc import Callable

import datasets
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from pipeline.core.config import require_limits
from pipeline.core.data.decode import encode_image
from pipeline.core.data.images import FEATURES, ImageData, short_hash

Plane = Float[np.ndarray, "n y x"]

# x grows to the right and y downwards; a shape fills about the square from -1 to 1
SHAPES: dict[str, Callable[[Plane, Plane], Bool[np.ndarray, "n y x"]]] = {
    "disc": lambda x, y: x**2 + y**2 < 1,
    "ring": lambda x, y: (x**2 + y**2 < 1) & (x**2 + y**2 > 0.36),
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.85,
    "triangle": lambda x, y: (y < 0.8) & (y > 2 * abs(x) - 1),
    "star": lambda x, y: abs(x)**0.5 + abs(y)**0.5 < 1,
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1),
    "heart": lambda x, y: (1.2 * x)**2 + (0.3 - 1.2 * y - abs(1.2 * x)**0.67)**2 < 1,
    "crescent": lambda x, y: (x**2 + y**2 < 1) & ((x - 0.5)**2 + y**2 > 0.64),
    "stripes": lambda x, y: (np.maximum(abs(x), abs(y)) < 1) & (np.floor(y * 2.5 + 0.5) % 2 == 0),
    "checker": lambda x, y: (np.maximum(abs(x), abs(y)) < 1) & ((np.floor(x * 2) + np.floor(y * 2)) % 2 == 0),
}
COLOURS = np.array([  # background, shape
    [(235, 235, 235), (200, 40, 40)], [(30, 30, 60), (250, 220, 90)], [(150, 200, 235), (40, 60, 150)],
    [(250, 240, 200), (40, 130, 60)], [(20, 20, 20), (240, 150, 40)], [(120, 160, 90), (250, 250, 250)],
    [(250, 205, 215), (150, 20, 90)], [(60, 30, 90), (170, 225, 225)], [(90, 70, 50), (225, 190, 140)],
    [(170, 170, 170), (60, 90, 80)],
], dtype=np.float64)
SUPERSAMPLING = 3


def shapes(image_size: int = 32, train_per_class: int = 24, validation_per_class: int = 12) -> ImageData:
    """Ten classes of simple shapes with one palette each; the same images at every call, train and validation disjoint.

    Raises UserError for an option below 1, or of more images than memory holds.
    """
    require_limits("data", image_size=(image_size, 1, 1024), train_per_class=(train_per_class, 1, 100_000),
                   validation_per_class=(validation_per_class, 1, 100_000))
    names = tuple(SHAPES)
    drawn = [draw_shapes(label, train_per_class + validation_per_class, image_size) for label in range(len(names))]
    train = _split([images[:train_per_class] for images in drawn])
    validation = _split([images[train_per_class:] for images in drawn])
    return ImageData(train, validation, names, names, names, short_hash(np.stack(drawn).tobytes(), train_per_class))


def draw_shapes(label: int, n: int, image_size: int) -> UInt8[np.ndarray, "n y x 3"]:
    """Draw `n` images of a class; image i is a function of (label, i) alone."""
    centre_x, centre_y, radius = np.random.Generator(np.random.Philox(key=label)).random((n, 3, 1, 1)).swapaxes(0, 1)
    axis = (np.arange(image_size * SUPERSAMPLING) + 0.5) / (image_size * SUPERSAMPLING) * 2 - 1
    radius = 0.45 + 0.3 * radius
    x = (axis[None, None, :] - 0.4 * (centre_x - 0.5)) / radius
    y = (axis[None, :, None] - 0.4 * (centre_y - 0.5)) / radius
    inside = list(SHAPES.values())[label](*np.broadcast_arrays(x, y))
    cells = inside.reshape(n, image_size, SUPERSAMPLING, image_size, SUPERSAMPLING)
    coverage = cells.mean((2, 4))[..., None]
    background, foreground = COLOURS[label]
    return (background + coverage * (foreground - background)).round().astype(np.uint8)


def classify_shapes(images: UInt8[Tensor, "b 3 y x"]) -> Int[Tensor, " b"]:
    """Say which class each image is of: the one whose two colours, and blends of them, explain the pixels best."""
    pixels = images.movedim(1, -1).float()
    background, foreground = torch.from_numpy(COLOURS).float().unbind(1)
    errors = []
    for start, direction in zip(background, foreground - background, strict=True):
        offset = pixels - start
        along = (offset @ direction / direction.square().sum()).clamp(0, 1)
        errors.append((offset - along[..., None] * direction).norm(dim=-1).mean((1, 2)))
    return torch.stack(errors, 1).argmin(1)


def _split(by_class: list[UInt8[np.ndarray, "n y x 3"]]) -> datasets.Dataset:
    images = [{"bytes": encode_image(pixels), "path": None} for images in by_class for pixels in images]
    labels = [label for label, images in enumerate(by_class) for _ in images]
    return datasets.Dataset.from_dict({"image": images, "label": labels}, FEATURES)
