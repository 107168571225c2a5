"""Density, coverage and the check for copies against brute force, closed forms and planted copies."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from eval.metrics import precision_recall
from eval.neighbours import copy_ratio, density_coverage, memorised, nearest, thumbnails, with_mirrored
from eval.pictures import blur
from pipeline.api import load_data
from pipeline.core.data.images import OrderedImages


def gaussian(n, dim, seed, shift=0.0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize(("n", "m", "shift"), [(90, 70, 0.5), (40, 1100, 1.0)])  # the second in more than one chunk
def test_density_and_coverage_are_their_definitions(n, m, shift):
    generated, real = gaussian(n, 6, 0, shift), gaussian(m, 6, 1)
    x, y = real.double().numpy(), generated.double().numpy()
    radius = np.sort(np.linalg.norm(x[:, None] - x[None], axis=2), 1)[:, 5]  # column 0 is the image itself
    inside = np.linalg.norm(x[:, None] - y[None], axis=2) < radius[:, None]
    density, coverage = density_coverage(generated, real)
    assert density.value == pytest.approx(inside.sum() / (5 * n))
    assert coverage.value == pytest.approx(inside.any(1).mean())
    counts = inside.sum(0) / 5
    without = np.array([np.delete(counts, np.arange(block, n, 20)).mean() for block in range(20)])
    assert density.without_block == pytest.approx(without)
    assert density.standard_error == pytest.approx(math.sqrt(19 / 20 * np.square(without - without.mean()).sum()))


def test_real_images_have_density_one_and_the_coverage_of_the_closed_form():
    density, coverage = density_coverage(gaussian(1000, 8, 2), gaussian(1000, 8, 3))
    assert density.value == pytest.approx(1, abs=0.05)
    assert coverage.value == pytest.approx(1 - 1 / 2**5, abs=0.02)  # Naeem et al. 2020, eq. 9, for n = m -> infinity


def test_an_outlier_spoils_recall_and_not_coverage():
    generated, real = gaussian(200, 8, 4, 1.0), gaussian(200, 8, 5)
    spoilt = torch.cat([generated[1:], -30 * torch.ones(1, 8)])
    assert abs(density_coverage(spoilt, real)[1].value - density_coverage(generated, real)[1].value) < 0.02
    assert precision_recall(spoilt, real)[1].value > precision_recall(generated, real)[1].value


def test_too_few_real_images_are_refused():
    with pytest.raises(ValueError, match="5 neighbours"):
        density_coverage(gaussian(9, 2, 0), gaussian(5, 2, 1))


def test_nearest_is_brute_force():
    points, others = gaussian(1500, 5, 6), gaussian(60, 5, 7)
    distances = np.linalg.norm(points.double().numpy()[:, None] - others.double().numpy()[None], axis=2)
    found, index = nearest(points, others)
    np.testing.assert_allclose(found, distances.min(1), rtol=1e-4)
    np.testing.assert_array_equal(index, distances.argmin(1))


@pytest.fixture(scope="module")
def places():
    """Crops of the Earth as the built-in data has them: overlapping ones for training, and others beside them, held out."""
    data = load_data("blue_marble", image_size=32)
    found = {}
    for name, split in (("training", data.train), ("held out", data.validation)):
        labels = torch.tensor(split["label"][:])
        rows = (labels % 6 == 0).nonzero().flatten()
        images = OrderedImages(split, 32)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        found[name] = torch.stack([images[int(row)]["image"] for row in rows[order]])
    return found


def jpeg(images, quality=40):
    """Images as a file of that quality keeps them."""
    found = []
    for image in images.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        found.append(torch.from_numpy(np.array(Image.open(file))))
    return torch.stack(found).permute(0, 3, 1, 2)


def mosaic(images):
    """Poor samples: squares of 8 pixels of different images."""
    n = len(images)
    squares = images.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3).clone()
    for place in range(16):
        squares[:, :, place] = squares[torch.randperm(n, generator=torch.Generator().manual_seed(place)), :, place]
    return squares.unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).reshape(n, 3, 32, 32)


def check(places, images):
    """The check for copies with a half of the held-out images; the other half is what an honest generator would draw."""
    training = with_mirrored(thumbnails(places["training"]))
    return memorised(thumbnails(images), training, thumbnails(places["held out"][::2]))


COPIES = {
    "exact": lambda images: images,
    "mirrored": lambda images: images.flip(-1),
    "blurred": lambda images: blur(images, 1.0),
    "mirrored and blurred": lambda images: blur(images.flip(-1), 0.75),
    "compressed": jpeg,
}


@pytest.mark.parametrize("planted", [0.05, 0.5])
@pytest.mark.parametrize("kind", COPIES)
def test_planted_copies_are_found_at_their_share_above_the_baseline(places, kind, planted):
    honest = places["held out"][1::2]
    count = round(planted * len(honest))
    found = check(places, torch.cat([COPIES[kind](places["training"][:count]), honest[count:]]))
    rest = (check(places, honest[count:]).share.value) * (1 - count / len(honest))
    assert found.share.value == pytest.approx(count / len(honest) + rest, abs=0.01)
    where = found.nearest[:count] % len(places["training"])
    assert (where == torch.arange(count)).double().mean() > 0.95
    mirrored = found.nearest[:count] >= len(places["training"])
    assert (mirrored == ("mirrored" in kind)).double().mean() > 0.95


HONEST = {
    "real": lambda images: images,
    "blurred": lambda images: blur(images, 1.0),
    "much blurred": lambda images: blur(images, 3.0),
    "compressed": jpeg,
    "mosaic": mosaic,
    "noise": lambda images: torch.randint(0, 256, images.shape, generator=torch.Generator().manual_seed(0)).byte(),
    "one colour": lambda images: images.float().mean((2, 3), keepdim=True).expand(images.shape).byte(),
}


@pytest.mark.parametrize("kind", HONEST)
def test_images_that_copy_nothing_score_no_more_than_the_baseline(places, kind):
    found = check(places, HONEST[kind](places["held out"][1::2]))
    assert found.share.value < found.alpha + 3 * math.hypot(found.threshold_error, found.share.standard_error or 0)


def test_the_ratio_is_brute_force():
    points, training = gaussian(40, 5, 8), gaussian(60, 5, 9)
    distances = np.sort(np.linalg.norm(points.double().numpy()[:, None] - training.double().numpy()[None], axis=2), 1)
    found, index = copy_ratio(points, training, neighbours=4)
    np.testing.assert_allclose(found, distances[:, 0] / distances[:, 3], rtol=1e-4)
    assert torch.equal(index, nearest(points, training)[1])
    with pytest.raises(ValueError, match="3 training images"):
        copy_ratio(points, training[:3], neighbours=4)


def test_a_mirrored_thumbnail_is_that_of_the_mirrored_image(crops):
    small = thumbnails(crops[:5])
    torch.testing.assert_close(with_mirrored(small)[5:], thumbnails(crops[:5].flip(-1)))
    torch.testing.assert_close(small, crops[:5].float().unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5)).flatten(1) / 255)


def test_the_share_at_alpha_keeps_its_standard_error():
    errors = []
    for seed in range(20, 50):
        parts = gaussian(700, 4, seed).split([300, 200, 200])
        found = memorised(parts[1], parts[0], parts[2], alpha=0.2)
        errors.append((found.share.value - 0.2) / math.hypot(found.share.standard_error or 0, found.threshold_error))
    assert 0.5 < np.std(errors) < 1.5 and abs(np.mean(errors)) < 1
