"""FVQ: the layout of the bridge, the losses of VQ on its book, and one chosen code that moves all."""

import pytest
import torch

from stage1_tokenizer.quantizers.fvq import FVQ, sine_positions


def make(k=16, patch=2):
    torch.manual_seed(0)
    return FVQ(3, k, width=8, heads=2, patch=patch).double(), torch.randn(20, 3, dtype=torch.float64)


def test_search_codes_and_losses_are_those_of_vq_on_the_book():
    quantizer, z = make()
    distances = (z[:, None] - quantizer.book()[None]).square().sum(-1)
    out = quantizer(z)
    assert torch.equal(out.indices[:, 0], distances.argmin(1))
    torch.testing.assert_close(sum(out.losses.values()), 1.25 * distances.min(1).values.mean() / 3)


def test_patches_return_to_their_places():
    """With blocks that do nothing and a last layer that inverts the first, the bridge is the identity."""
    quantizer = FVQ(3, 64, width=48, heads=2, patch=4, depth=0).double()
    projection = torch.linalg.qr(torch.randn(48, 48, dtype=torch.float64)).Q
    quantizer.patches.weight.data.copy_(projection.view(48, 3, 4, 4))
    torch.nn.init.zeros_(quantizer.get_parameter("patches.bias"))
    quantizer.positions.zero_()
    quantizer.outward[0] = torch.nn.Identity()
    quantizer.get_parameter("outward.1.weight").data.copy_(projection.T)
    torch.nn.init.zeros_(quantizer.get_parameter("outward.1.bias"))
    torch.testing.assert_close(quantizer.book(), quantizer.raw.flatten(1).T)


@pytest.mark.parametrize(("k", "side"), [(16, 4), (15, 4), (17, 6), (1, 2)])
def test_any_number_of_codes_has_a_layout(k, side):
    quantizer, z = make(k)
    assert quantizer.raw.shape == (3, side, side)
    assert quantizer.book().shape == (k, 3)
    assert (quantizer(z).indices < k).all()


def test_one_chosen_code_moves_all():
    quantizer, z = make()
    before = quantizer.book().detach()
    quantizer(z[:1]).losses["codebook"].backward()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    assert ((quantizer.book() - before) != 0).any(1).all()


def test_codes_differ_from_the_start():
    assert len(make()[0].book().unique(dim=0)) == 16
    assert len(sine_positions(8, 16).unique(dim=0)) == 64
