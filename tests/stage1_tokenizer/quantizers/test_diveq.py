"""DiVeQ against vector-quantize-pytorch's directional reparameterization."""

import torch
from vector_quantize_pytorch.vector_quantize_pytorch import directional_reparam

from stage1_tokenizer.quantizers.diveq import DiVeQ


def make(**options):
    torch.manual_seed(0)
    return DiVeQ(4, 6, **options).double(), torch.randn(30, 4, dtype=torch.float64, requires_grad=True)


def test_agrees_with_an_independent_implementation_in_value_and_gradient(monkeypatch):
    quantizer, z = make(noise_variance=0.3)
    noise = torch.randn(30, 4, dtype=torch.float64)
    monkeypatch.setattr(quantizer.noise, "normal", lambda like: noise)
    monkeypatch.setattr(torch, "randn_like", lambda like: noise)
    out = quantizer(z)
    theirs = directional_reparam(z, quantizer.codebook[out.indices[:, 0]], noise_variance=0.3)
    torch.testing.assert_close(out.codes, theirs)
    weights = torch.randn(30, 4, dtype=torch.float64)
    wanted = [z, quantizer.codebook]
    mine = torch.autograd.grad((out.codes * weights).sum(), wanted)
    for ours, other in zip(mine, torch.autograd.grad((theirs * weights).sum(), wanted), strict=True):
        torch.testing.assert_close(ours, other)


def test_the_error_keeps_its_length_and_nearly_its_direction():
    quantizer, z = make()
    out = quantizer(z)
    errors = quantizer.codebook[out.indices[:, 0]] - z
    torch.testing.assert_close((out.codes - z).norm(dim=1), errors.norm(dim=1))
    assert torch.nn.functional.cosine_similarity(out.codes - z, errors).min() > 0.9


def test_without_noise_it_is_the_code():
    quantizer, z = make(noise_variance=0.0)
    out = quantizer(z)
    torch.testing.assert_close(out.codes, quantizer.codebook[out.indices[:, 0]])
    assert torch.equal(quantizer.eval()(z).codes, quantizer.codebook[out.indices[:, 0]])
