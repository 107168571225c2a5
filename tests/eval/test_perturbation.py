"""Tokens with some positions replaced."""

import pytest
import torch

from eval.perturbation import perturbed

TOKENS = torch.randint(0, 5, (40, 64, 2), generator=torch.Generator().manual_seed(0))
SIZES = (7, 5)


def test_nothing_and_everything():
    assert torch.equal(perturbed(TOKENS, SIZES, 0.0, range(40)), TOKENS)
    spoilt = perturbed(TOKENS, SIZES, 1.0, range(40))
    for j, size in enumerate(SIZES):  # uniform over all codes, whatever they were before
        counts = spoilt[..., j].flatten().bincount(minlength=size).double()
        assert len(counts) == size
        assert ((counts - counts.mean()).square() / counts.mean()).sum() < 25  # chi-square of at most 6 degrees of freedom


def test_the_share_of_replaced_positions():
    spoilt = perturbed(torch.full((40, 64, 2), -1), SIZES, 0.3, range(40))  # -1: no draw gives it again
    assert (spoilt >= 0).double().mean().item() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(spoilt[..., 0] >= 0, spoilt[..., 1] >= 0)  # all indices of a position or none


def test_as_many_positions_of_one_index_as_of_three():
    spoilt = [perturbed(torch.full((40, 64, d), -1), (7,) * d, 0.3, range(40))[..., 0] >= 0 for d in (1, 3)]
    assert abs(spoilt[0].double().mean() - spoilt[1].double().mean()) < 0.03


def test_a_larger_share_replaces_more_and_the_same():
    little, much = (perturbed(torch.full((9, 64, 2), -1), SIZES, share, range(9)) for share in (0.1, 0.4))
    replaced = little >= 0
    assert torch.equal(little[replaced], much[replaced])


def test_an_image_is_perturbed_by_its_own_seed_alone():
    together = perturbed(TOKENS, SIZES, 0.5, range(40))
    assert torch.equal(perturbed(TOKENS[7:8], SIZES, 0.5, [7])[0], together[7])
    assert not torch.equal(perturbed(TOKENS[7:8], SIZES, 0.5, [8])[0], together[7])


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_is_refused(share):
    with pytest.raises(ValueError, match="0 to 1"):
        perturbed(TOKENS, SIZES, share, range(40))
