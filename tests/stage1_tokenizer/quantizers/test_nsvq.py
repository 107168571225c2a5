"""NS-VQ against its loss written out, and its limits."""

import pytest
import torch

from stage1_tokenizer.quantizers.assignment import tiles
from stage1_tokenizer.quantizers.nsvq import NSVQ
from stage1_tokenizer.quantizers.vq import VQ


def make(n=40, k=7, c=3, **options):
    torch.manual_seed(0)
    quantizer = NSVQ(c, k, **options).double()
    quantizer.codebook.data.normal_()
    return quantizer, torch.randn(n, c, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("tile", [1, 50, 1 << 20])
@pytest.mark.parametrize("pull", [0.05, 1.0])
def test_loss_and_gradients_are_those_written_out(monkeypatch, tile, pull):
    monkeypatch.setitem(tiles.TILE, "cpu", (max(1, tile // 7), tile))
    quantizer, z = make(pull=pull)
    distances = (z.detach()[:, None] - quantizer.codebook[None]).square().sum(-1)
    weights = (pull * 7 * (-distances.detach() / quantizer.temperature).softmax(1)).clamp(0, 1)
    weights[torch.arange(40), distances.argmin(1)] = 1
    expected = (weights * distances).sum() / z.numel()
    loss = quantizer(z).losses["codebook"]
    torch.testing.assert_close(loss, expected)
    mine = torch.autograd.grad(loss, quantizer.codebook)[0]
    torch.testing.assert_close(mine, torch.autograd.grad(expected, quantizer.codebook)[0])
    assert (mine != 0).any(1).all()


@pytest.mark.parametrize("temperature", [1.0, 0.02, 1e-4])
@pytest.mark.parametrize("pull", [0.05, 3.0])
def test_with_many_codes_those_without_weight_are_left_out(temperature, pull):
    quantizer, z = make(n=60, k=900, temperature_start=temperature, pull=pull)
    distances = (z.detach()[:, None] - quantizer.codebook[None]).square().sum(-1)
    weights = (pull * 900 * (-distances.detach() / quantizer.temperature).softmax(1)).clamp(0, 1)
    weights[torch.arange(60), distances.argmin(1)] = 1
    expected = (weights * distances).sum() / z.numel()
    loss = quantizer(z).losses["codebook"]
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(total, quantizer.codebook)[0] for total in (loss, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("options", [{"pull": 0.0}, {"temperature_start": 1e-9}])
def test_without_pull_or_temperature_it_is_vq(options):
    quantizer, z = make(**options)
    plain = VQ(3, 7).double()
    plain.load_state_dict({"codebook": quantizer.codebook})
    mine, theirs = quantizer(z), plain(z)
    assert torch.equal(mine.indices, theirs.indices)
    assert mine.losses.keys() == theirs.losses.keys()
    for name, loss in theirs.losses.items():
        torch.testing.assert_close(mine.losses[name], loss)


def test_the_pull_never_lowers_the_loss_and_fades():
    quantizer, z = make(pull=0.5)
    losses = []
    for progress in (0.0, 0.5, 1.0):
        quantizer.anneal(progress)
        losses.append(quantizer(z).losses["codebook"])
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] >= (z - quantizer(z).codes).square().mean() - 1e-12
