"""Extractors and features: the path from pixels to the numbers that the metrics see."""

import pytest
import torch
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics

from eval.extractors import LITE0_IN_FIDELITY
from eval.features import extract, rechunk, reference
from eval.metrics import frechet_distance, inception_score, kernel_distance, moments, precision_recall
from eval.pictures import blur
from pipeline.core.errors import UserError


class Images(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@pytest.fixture(scope="module")
def measured(crops, extractor):
    return extract([crops], extractor, len(crops), "crops")


def test_torch_fidelity_with_our_extractor_gives_our_numbers(crops, noisy, extractor):
    ours, theirs = noisy(crops[:48], 8.0), crops[48:96]
    wanted = calculate_metrics(
        input1=Images(ours),
        input2=Images(theirs),
        feature_extractor=LITE0_IN_FIDELITY,
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        kid_subsets=10,
        kid_subset_size=40,
        batch_size=32,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    a, b = extract([ours], extractor, 48, "a"), extract([theirs], extractor, 48, "b")
    precision, recall = precision_recall(a.pool, b.pool)
    found = {
        "frechet_inception_distance": frechet_distance(a.pool, moments(b.pool)).value,
        "kernel_inception_distance_mean": kernel_distance(a.pool, b.pool, 10, 40).value,
        "inception_score_mean": inception_score(a.logits).value,
        "precision": precision.value,
        "recall": recall.value,
    }
    for name, value in found.items():
        assert value == pytest.approx(wanted[name], rel=1e-4, abs=1e-6), name


def test_features_do_not_depend_on_the_batch_size(crops, extractor):
    some = crops[:70]
    whole, ones = extract([some], extractor, 70, "whole"), extract(some.split(9), extractor, 70, "nines")
    assert torch.equal(whole.pool, ones.pool) and torch.equal(whole.logits, ones.logits)


def test_rechunk_keeps_the_images_in_order(crops):
    chunks = list(rechunk([crops[:5], crops[5:6], crops[6:30]], 8))
    assert [len(chunk) for chunk in chunks] == [8, 8, 8, 6]
    assert torch.equal(torch.cat(chunks), crops[:30])
    assert [len(chunk) for chunk in rechunk([crops[:16]], 8)] == [8, 8]
    assert list(rechunk([], 8)) == []


def test_the_distances_order_degradations(crops, noisy, extractor, measured):
    tested = crops[96:]

    def scores(images):
        found = extract([images], extractor, len(images), "degraded").pool
        # the Frechet distance of 96 images needs fewer features than images, and takes seconds on all of them
        distance = frechet_distance(found[:, ::40], moments(measured.pool[:96, ::40])).value
        return distance, kernel_distance(found, measured.pool[:96], 10, 80).value

    plain, soft, softer = scores(tested), scores(blur(tested, 0.8)), scores(blur(tested, 1.6))
    grainy, grainier = scores(noisy(tested, 8.0)), scores(noisy(tested, 20.0))
    for metric in range(2):
        assert plain[metric] < soft[metric] < softer[metric]
        assert plain[metric] < grainy[metric] < grainier[metric]


def test_one_kind_of_image_alone_has_little_recall(measured):
    real = measured.pool[:96]
    repeated = real[:4].repeat(24, 1) + 1e-3 * torch.randn(96, real.shape[1], generator=torch.Generator().manual_seed(0))
    assert precision_recall(repeated, real)[1].value < 0.3 < precision_recall(measured.pool[96:], real)[1].value


def test_images_must_be_uint8(crops, extractor):
    with pytest.raises(TypeError, match="uint8"):
        extract([crops[:4].float()], extractor, 4, "floats")


def test_too_few_images_are_refused(crops, extractor):
    with pytest.raises(UserError, match="at least two"):
        extract([crops[:1]], extractor, 1, "one")
    with pytest.raises(UserError, match="at least two"):
        extract([], extractor, 0, "none")


KEY = {"data": "abc", "split": "train", "n": 40, "seed": 0, "image_size": 32}


def test_the_reference_is_measured_once_per_key(crops, extractor, tmp_path, monkeypatch):
    monkeypatch.setattr("eval.features.MOMENT_CHUNKS", 1)
    calls = []

    def batches():
        calls.append(1)
        yield from zip(crops[:40].split(15), torch.arange(40).split(15), strict=True)

    first = reference(tmp_path, KEY, batches, extractor, 40, keep=24)
    again = reference(tmp_path, KEY, batches, extractor, 40, keep=24)
    assert len(calls) == 1
    assert torch.equal(first.features.pool, again.features.pool) and torch.equal(first.moments.mean, again.moments.mean)
    assert torch.equal(again.moments.covariance, first.moments.covariance) and again.moments.n == 40
    assert again.labels.tolist() == list(range(24)) and len(again.features) == 24
    assert first.describe() == again.describe() and first.describe()["n"] == 40

    whole = extract([crops[:40]], extractor, 40, "whole")
    torch.testing.assert_close(first.moments.covariance, moments(whole.pool).covariance)
    assert torch.equal(first.features.pool, whole.pool[:24])

    other = reference(tmp_path, {**KEY, "split": "validation"}, batches, extractor, 40)
    assert len(calls) == 2 and other.id != first.id


def test_a_single_image_left_over_counts(crops, extractor, tmp_path, monkeypatch):
    monkeypatch.setattr("eval.features.MOMENT_CHUNKS", 1)
    found = reference(tmp_path, KEY, lambda: [(crops[:33], torch.zeros(33).long())], extractor, 33)
    whole = moments(extract([crops[:33]], extractor, 33, "whole").pool)
    assert found.moments.n == 33
    torch.testing.assert_close(found.moments.covariance, whole.covariance)


def test_a_damaged_cache_is_measured_again(crops, extractor, tmp_path):
    batches = lambda: [(crops[:8], torch.zeros(8).long())]  # noqa: E731
    first = reference(tmp_path, KEY, batches, extractor, 8)
    (file,) = tmp_path.glob("reference-*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    assert torch.equal(reference(tmp_path, KEY, batches, extractor, 8).features.pool, first.features.pool)
    file.write_bytes(b"")
    assert torch.equal(reference(tmp_path, KEY, batches, extractor, 8).features.pool, first.features.pool)
