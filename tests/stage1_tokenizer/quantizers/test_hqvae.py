"""RSQ-VAE: the residual identity, a single layer is SQ-VAE, the loss from its parts."""

import torch

from stage1_tokenizer.quantizers.hqvae import HQVAE
from stage1_tokenizer.quantizers.sqvae import SQVAE

N, K, C = 40, 6, 3


def vectors():
    return torch.randn(N, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def made(kind, **options):
    torch.manual_seed(0)
    quantizer = kind(C, K, **options).double()
    quantizer.initialize(vectors())
    return quantizer


def test_every_code_is_nearest_to_what_the_codes_before_leave():
    quantizer = made(HQVAE, depth=3).eval()
    z = vectors()
    out = quantizer(z)
    rest = z.clone()
    for layer, index in zip(quantizer.layers, out.indices.unbind(1), strict=True):
        assert torch.equal(torch.cdist(rest, layer.codes).argmin(1), index)
        rest = rest - layer.codes[index]
    torch.testing.assert_close(rest, z - out.codes)
    errors = [(made(HQVAE, depth=depth).eval()(z).codes - z).square().mean() for depth in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]


def test_one_layer_is_sqvae():
    one, plain = made(HQVAE, depth=1), made(SQVAE)
    for training in (True, False):
        a, b = one.train(training)(vectors()), plain.train(training)(vectors())
        assert torch.equal(a.codes, b.codes)
        assert torch.equal(a.indices, b.indices)
        assert a.losses == b.losses


def test_the_losses_from_the_layers():
    quantizer = made(HQVAE, weight=1.0)
    z = vectors()
    out = quantizer(z)
    first, second = quantizer.layers
    for layer in quantizer.layers:
        layer.noise.drawn.zero_()  # the same noise again
    a = first.sample(z, quantizer.temperature)
    b = second.sample(z - a.codes, quantizer.temperature)
    torch.testing.assert_close(out.codes, a.codes + b.codes)
    information = torch.stack([(s.posterior * s.posterior.log()).sum(1).mean() for s in (a, b)]).sum()
    torch.testing.assert_close(out.losses["entropy"], information)
    variance = first.log_variance.exp() + second.log_variance.exp()
    torch.testing.assert_close(out.losses["distance"], (z - out.codes).square().sum(1).mean() / 2 / variance)
