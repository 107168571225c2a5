"""The judge's real images: which rows, in which order."""

import pytest
import torch

from eval.config import EvalConfig
from eval.judge import Judge
from eval.neighbours import thumbnails
from pipeline.api import load_data


@pytest.fixture(scope="module")
def judges():
    data = load_data("blue_marble", image_size=32)
    return [Judge(data, 32, EvalConfig(images=200, reference_images=400), "cpu") for _ in range(2)]


@pytest.mark.parametrize("which", ["reference", "floor", "validation", "unseen"])
def test_every_judge_has_the_same_images_in_the_same_random_order(judges, which):
    rows = judges[0].rows(which)
    assert rows == judges[1].rows(which) and len(set(rows)) == len(rows) == (400 if which == "reference" else 200)
    # neighbouring rows are crops of one place: in random order every block of a jackknife holds some of everywhere
    steps = torch.tensor(rows).diff().abs().double().mean().item()
    assert steps == pytest.approx(max(rows) / 3, rel=0.2)
    blocks = torch.stack([torch.tensor(rows[block::20]).double().mean() for block in range(20)])
    assert (blocks - max(rows) / 2).abs().max() < 4 * max(rows) / (12 * len(rows) / 20) ** 0.5


def test_unseen_images_have_no_class(judges):
    images, labels = next(iter(judges[0].real_batches("unseen")))
    assert images.shape[1:] == (3, 32, 32) and set(labels.tolist()) == {-1}


def test_thumbnails_come_with_their_rows(judges):
    small, rows = judges[0].thumbnails("validation")
    images = judges[0].images["validation"]
    assert rows.sort().values.tolist() == list(range(len(images)))
    torch.testing.assert_close(small[:3], thumbnails(torch.stack([images[int(row)]["image"] for row in rows[:3]])))
