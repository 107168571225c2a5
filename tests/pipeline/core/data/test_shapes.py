import numpy as np
import torch

from pipeline.core.data.images import OrderedImages, ordered_batches
from pipeline.core.data.shapes import SHAPES, classify_shapes, draw_shapes, shapes


def test_the_oracle_knows_every_image_even_blurred():
    data = shapes(image_size=32)
    batch = next(ordered_batches(OrderedImages(data.train, 32), 1000))
    assert torch.equal(classify_shapes(batch["image"]), batch["label"])
    blurred = torch.nn.functional.avg_pool2d(batch["image"].float(), 5, 1, 2, count_include_pad=False)
    assert torch.equal(classify_shapes(blurred.to(torch.uint8)), batch["label"])


def test_images_are_repeatable_disjoint_and_varied(shape_data):
    again = shapes(image_size=16, train_per_class=5, validation_per_class=3)
    assert again.fingerprint == shape_data.fingerprint != shapes(16, 4, 4).fingerprint
    assert again.train[:] == shape_data.train[:]
    files = [image["bytes"] for split in (again.train, again.validation) for image in split["image"]]
    assert len(set(files)) == len(files) == 10 * 8


def test_shapes_stay_inside_and_are_visible():
    for label in range(len(SHAPES)):
        images = draw_shapes(label, 50, 32).astype(int)
        background = images[:, :1, :1]
        share = (np.abs(images - background).max(-1) > 0).mean((1, 2))
        assert share.min() > 0.03 and share.max() < 0.7
        assert np.abs(images[:, [0, -1]] - background).max() == 0 == np.abs(images[:, :, [0, -1]] - background).max()
