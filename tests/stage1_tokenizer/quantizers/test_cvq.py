"""CVQ against the published update, written out densely."""

import torch

from stage1_tokenizer.quantizers.cvq import CVQ
from stage1_tokenizer.quantizers.vq import VQ


def make(n=50, k=8, c=3, **options):
    torch.manual_seed(0)
    quantizer = CVQ(c, k, **options).double()
    quantizer.codebook.data[[2, 5]] += 20  # unused ones
    return quantizer, torch.randn(n, c, dtype=torch.float64)


def published(codebook, shares, z, decay):
    """The public VectorQuantiser with distance="l2", anchor="closest"."""
    d = -torch.cdist(z, codebook).square()
    one_hot = torch.nn.functional.one_hot(d.argmax(1), len(codebook)).double()
    shares = shares * decay + one_hot.mean(0) * (1 - decay)
    pull = torch.exp(-(shares * len(codebook) * 10) / (1 - decay) - 1e-3)[:, None]
    return codebook * (1 - pull) + z[d.argmax(0)] * pull, shares


def test_steps_are_those_of_the_published_code():
    quantizer, z = make(decay=0.9)
    codebook, shares = quantizer.codebook.detach().clone(), quantizer.shares.clone()
    for step in range(4):
        batch = z + step / 5
        codebook, shares = published(codebook, shares, batch, 0.9)
        quantizer(batch)
        quantizer.anneal(0.0)
        torch.testing.assert_close(quantizer.codebook.detach(), codebook)
        torch.testing.assert_close(quantizer.shares, shares)


def test_an_unused_code_moves_to_its_nearest_vector_and_used_ones_stay():
    quantizer, z = make()
    before = quantizer.codebook.detach().clone()
    chosen = quantizer(z).indices.unique()
    assert not torch.isin(torch.tensor([2, 5]), chosen).any()
    quantizer.anneal(0.0)
    after = quantizer.codebook.detach()
    nearest = z[torch.cdist(before, z).argmin(1)]
    torch.testing.assert_close(after[[2, 5]], nearest[[2, 5]], rtol=0, atol=0.05)
    popular = quantizer(z).indices.flatten().bincount(minlength=8).argmax()
    torch.testing.assert_close(after[popular], before[popular], rtol=1e-3, atol=1e-3)


def test_micro_batches_are_one_update():
    codebooks = []
    for size in (50, 20):
        quantizer, z = make()
        for part in z.split(size):
            quantizer(part)
        quantizer.anneal(0.0)
        codebooks.append(quantizer.codebook)
    torch.testing.assert_close(*codebooks)


def test_the_losses_are_those_of_vq():
    quantizer, z = make()
    plain = VQ(3, 8).double()
    plain.codebook.data.copy_(quantizer.codebook.data)
    mine, theirs = quantizer(z).losses, plain(z).losses
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
