"""IBQ against the published forward written out densely, in value and gradient."""

import torch
from torch.nn.functional import one_hot

from stage1_tokenizer.quantizers.ibq import IBQ


def make(n=30, k=9, c=4):
    torch.manual_seed(0)
    return IBQ(c, k).double(), torch.randn(n, c, dtype=torch.float64, requires_grad=True)


def published(z, codebook):
    """SEED-Voken's IndexPropagationQuantize with cosine similarity off."""
    logits = z @ codebook.T
    soft = logits.softmax(1)
    hard = one_hot(logits.argmax(1), len(codebook)).to(soft)
    q, plain = (hard - soft.detach() + soft) @ codebook, hard @ codebook
    loss = (q - z).square().mean() + (plain.detach() - z).square().mean() + 0.25 * (plain - z.detach()).square().mean()
    p = (logits / 0.01).softmax(1)
    sample, mean = -(p * (p + 1e-30).log()).sum(1).mean(), p.mean(0)
    return q, loss + 0.05 * (sample + (mean * (mean + 1e-30).log()).sum())


def test_value_losses_and_gradients_are_the_published_ones():
    quantizer, z = make()
    out = quantizer(z)
    q, loss = published(z, quantizer.codebook)
    total = torch.stack(list(out.losses.values())).sum()
    torch.testing.assert_close(out.codes, q)
    torch.testing.assert_close(total, loss)
    g = torch.randn(q.shape, dtype=torch.float64)
    mine = torch.autograd.grad((out.codes * g).sum() + total, [z, quantizer.codebook])
    theirs = torch.autograd.grad((q * g).sum() + loss, [z, quantizer.codebook])
    torch.testing.assert_close(mine, theirs)


def test_the_largest_product_wins_and_one_vector_moves_every_code():
    quantizer, z = make(n=1)
    out = quantizer(z)
    assert out.indices.item() == (z @ quantizer.codebook.T).argmax()
    (gradient,) = torch.autograd.grad(out.codes.sum(), quantizer.codebook)
    assert (gradient != 0).any(1).all()
