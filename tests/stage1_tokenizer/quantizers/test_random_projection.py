"""RPQ against vector-quantize-pytorch's cosine search, and what must never change."""

import torch
from vector_quantize_pytorch import VectorQuantize

from stage1_tokenizer.quantizers.random_projection import RandomProjection


def make(seed=3):
    z = torch.randn(60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return RandomProjection(5, 17, seed=seed).double(), z


def test_agrees_with_an_independent_implementation():
    quantizer, z = make()
    other = VectorQuantize(5, 17, use_cosine_sim=True, rotation_trick=False).double().eval()
    other._codebook.embed.data.copy_(quantizer.codebook[None])
    out, (codes, indices, _) = quantizer(z), other(z[None])
    assert torch.equal(out.indices[:, 0], indices[0])
    torch.testing.assert_close(out.codes, codes[0])


def test_gradient_is_that_of_the_normalisation():
    quantizer, z = make()
    weights = torch.randn_like(z)
    mine, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    (quantizer(mine).codes * weights).sum().backward()
    (theirs / theirs.norm(dim=1, keepdim=True) * weights).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_the_seed_decides_the_codes_and_the_scale_of_z_nothing():
    quantizer, z = make()
    assert torch.equal(quantizer.codebook, make()[0].codebook)
    assert not torch.equal(quantizer.codebook, make(seed=4)[0].codebook)
    assert torch.equal(quantizer(z).indices, quantizer(1e3 * z).indices)
    assert not list(quantizer.parameters())
    torch.testing.assert_close(quantizer(z).codes.norm(dim=1), torch.ones(60, dtype=torch.float64))
