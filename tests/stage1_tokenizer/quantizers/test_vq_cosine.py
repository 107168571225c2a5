"""VQ on the sphere against brute force, its closed-form gradient and vector-quantize-pytorch."""

import torch
from torch.nn.functional import normalize
from vector_quantize_pytorch import VectorQuantize

from stage1_tokenizer.quantizers.vq_cosine import VQCosine


def make(n=40, k=9, c=4):
    torch.manual_seed(0)
    quantizer = VQCosine(c, k).double()
    quantizer.codebook.data *= torch.rand(k, 1, dtype=torch.float64) + 0.5  # norms must not matter
    return quantizer, 3 * torch.randn(n, c, dtype=torch.float64, requires_grad=True)


def test_codes_and_losses_are_those_of_the_largest_cosine():
    quantizer, z = make()
    out = quantizer(z)
    cosines = torch.cosine_similarity(z[:, None], quantizer.codebook[None], dim=-1)
    assert torch.equal(out.indices[:, 0], cosines.argmax(1))
    torch.testing.assert_close(out.codes.norm(dim=1), torch.ones(40, dtype=torch.float64))
    total = torch.stack(list(out.losses.values())).sum()
    torch.testing.assert_close(total, 1.25 * (2 - 2 * cosines.max(1).values).mean() / 4)  # |a - b|^2 of unit vectors


def test_gradient_passes_through_the_normalisation():
    quantizer, z = make()
    z.retain_grad()
    g = torch.randn(z.shape, dtype=torch.float64)
    (quantizer(z).codes * g).sum().backward()
    u = normalize(z, dim=1)
    torch.testing.assert_close(z.grad, (g - (g * u).sum(1, keepdim=True) * u) / z.norm(dim=1, keepdim=True))
    assert quantizer.codebook.grad is None  # by the losses only


def test_agrees_with_an_independent_implementation():
    quantizer, z = make()
    other = VectorQuantize(4, 9, use_cosine_sim=True, rotation_trick=False).double().eval()
    other._codebook.embed.data.copy_(normalize(quantizer.codebook, dim=1)[None])
    codes, indices, _ = other(z[None])
    out = quantizer(z)
    assert torch.equal(out.indices[:, 0], indices[0])
    torch.testing.assert_close(out.codes, codes[0])


def test_the_scale_of_a_vector_does_not_matter():
    quantizer, z = make()
    assert torch.equal(quantizer(1e-3 * z).indices, quantizer(1e3 * z).indices)
