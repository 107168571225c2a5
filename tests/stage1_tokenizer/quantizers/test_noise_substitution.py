"""Noise substitution against its formula, and the replacement of unused codes."""

import torch

from stage1_tokenizer.quantizers.codebooks import Replacement
from stage1_tokenizer.quantizers.noise_substitution import NoiseSubstitution


def make(n=30):
    torch.manual_seed(0)
    return NoiseSubstitution(4, 6).double(), torch.randn(n, 4, dtype=torch.float64, requires_grad=True)


def test_value_and_gradients_are_those_of_the_formula(monkeypatch):
    quantizer, z = make()
    noise = torch.randn(30, 4, dtype=torch.float64)
    monkeypatch.setattr(quantizer.noise, "normal", lambda like: noise)
    out = quantizer(z)
    codes = quantizer.codebook[(z[:, None] - quantizer.codebook[None]).square().sum(-1).argmin(1)]
    expected = z + (z - codes).norm(dim=1, keepdim=True) * noise / noise.norm(dim=1, keepdim=True)
    torch.testing.assert_close(out.codes, expected)
    weights = torch.randn(30, 4, dtype=torch.float64)
    wanted = [z, quantizer.codebook]
    mine = torch.autograd.grad((out.codes * weights).sum(), wanted)
    for ours, other in zip(mine, torch.autograd.grad((expected * weights).sum(), wanted), strict=True):
        torch.testing.assert_close(ours, other)


def test_the_error_keeps_its_length_and_has_no_direction():
    quantizer, z = make(4000)
    out = quantizer(z)
    errors = quantizer.codebook[out.indices[:, 0]] - z
    torch.testing.assert_close((out.codes - z).norm(dim=1), errors.norm(dim=1))
    assert torch.nn.functional.cosine_similarity(out.codes - z, errors).mean().abs() < 0.04
    assert not torch.equal(quantizer(z).codes, out.codes)
    assert torch.equal(quantizer.eval()(z).codes, quantizer.codebook[out.indices[:, 0]])


def test_unused_codes_move_next_to_used_ones_in_proportion_to_their_use():
    codebook = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    before = codebook.clone()
    replacement = Replacement(8, every=2, below=0.5)
    index = torch.tensor([1] * 30 + [4] * 10 + [6] * 10)
    replacement.record(index)
    replacement.update(codebook)
    replacement.update(codebook)  # nothing new: counts once
    assert torch.equal(codebook, before)
    replacement.record(index)
    replacement.update(codebook)
    used = [1, 4, 6]
    assert torch.equal(codebook[used], before[used])
    nearest = torch.cdist(codebook, before[used]).min(1)
    assert nearest.values.max() < 0.01
    assert nearest.indices.bincount().tolist() == [4, 2, 2]
    assert len(codebook.unique(dim=0)) == 8
    assert replacement.counts.sum() == 0


def test_micro_batches_are_one_update():
    replacement = Replacement(4, every=1, below=0.5)
    codebook = torch.arange(4.0)[:, None]
    for part in torch.tensor([0, 1, 2, 3, 3, 3]).split(2):
        replacement.record(part)
    assert replacement.counts.tolist() == [1, 1, 1, 3]
    replacement.update(codebook)
    assert codebook[:, 0].tolist() == [0, 1, 2, 3]
