import io

import numpy as np
import pytest
from PIL import Image

from pipeline.core.data.shapes import shapes


@pytest.fixture(scope="session")
def shape_data():
    return shapes(image_size=16, train_per_class=5, validation_per_class=3)


@pytest.fixture
def photo():
    """A smooth colour picture, brighter to the right and redder downwards, of a given size."""
    def make(width, height, mode="RGB"):
        x, y = np.meshgrid(np.linspace(40, 220, width), np.linspace(30, 200, height))
        return Image.fromarray(np.stack([y, x, 255 - y], -1).astype(np.uint8)).convert(mode)
    return make


@pytest.fixture
def stored():
    """A picture as an `Image(decode=False)` column holds it."""
    def encode(image, file_format, **options):
        file = io.BytesIO()
        image.save(file, file_format, **options)
        return {"bytes": file.getvalue(), "path": None}
    return encode


@pytest.fixture
def image_folder(tmp_path, photo):
    """Write a folder of small images: {"train/cat": 3, ...} -> path."""
    def write(counts, suffix="png"):
        for place, count in counts.items():
            (tmp_path / place).mkdir(parents=True)
            for i in range(count):
                photo(20 + i, 16).save(tmp_path / place / f"{i}.{suffix}")
        return tmp_path
    return write
