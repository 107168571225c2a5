"""EMA-VQ against its closed form and vector-quantize-pytorch."""

import torch
from vector_quantize_pytorch import VectorQuantize

from stage1_tokenizer.quantizers.vq_ema import VQEMA


def make(k=6, c=3, **options):
    draw = torch.Generator().manual_seed(0)
    quantizer = VQEMA(c, k, **options).double()
    quantizer.codebook.copy_(torch.randn(k, c, generator=draw))
    quantizer.sums.copy_(quantizer.codebook)
    return quantizer, torch.randn(50, c, generator=draw, dtype=torch.float64)


def test_steps_agree_with_an_independent_implementation():
    quantizer, z = make(restart_below=0.0)
    other = VectorQuantize(3, 6, decay=0.99, commitment_weight=0.25, rotation_trick=False, threshold_ema_dead_code=0).double()
    start = {"embed": quantizer.codebook, "embed_avg": quantizer.codebook, "cluster_size": torch.ones(6)}
    other._codebook.load_state_dict({key: value[None] for key, value in start.items()}, strict=False)
    for step in range(4):
        batch = (z + step / 5).requires_grad_()
        theirs = batch.detach().clone().requires_grad_()
        out = quantizer(batch)
        codes, indices, loss = other(theirs[None])
        assert torch.equal(out.indices[:, 0], indices[0])
        torch.testing.assert_close(out.codes, codes[0])
        torch.testing.assert_close(out.losses["commitment"], loss.sum())
        (out.losses["commitment"] + out.codes.square().sum()).backward()
        (loss.sum() + codes.square().sum()).backward()
        torch.testing.assert_close(batch.grad, theirs.grad)
        quantizer.anneal(0.0)
        torch.testing.assert_close(quantizer.codebook, other._codebook.embed[0])


def test_one_step_in_closed_form_and_decay_zero_gives_cluster_means():
    quantizer, z = make(decay=0.0, restart_below=0.0)
    chosen = quantizer(z).indices[:, 0]
    quantizer.anneal(0.0)
    for code in chosen.unique():
        torch.testing.assert_close(quantizer.codebook[code], z[chosen == code].mean(0), rtol=1e-4, atol=1e-5)
    assert quantizer.counts.sum() == len(z)


def test_micro_batches_are_one_update():
    whole, z = make()
    parts, _ = make()
    whole(z)
    for part in z.split(20):
        parts(part)
    whole.anneal(0.0)
    parts.anneal(0.0)
    torch.testing.assert_close(whole.counts, parts.counts)
    torch.testing.assert_close(whole.sums, parts.sums)


def test_a_dead_code_restarts_at_a_vector_of_the_batch():
    quantizer, z = make(decay=0.5)
    quantizer.codebook[2] = quantizer.sums[2] = 1e3
    for _ in range(6):
        assert not (quantizer(z).indices == 2).any()
        quantizer.anneal(0.0)
        if quantizer.codebook[2].abs().max() < 100:
            break
    assert (quantizer.codebook[2] == z).all(1).any()
    torch.testing.assert_close(quantizer.sums[2], quantizer.codebook[2] * quantizer.counts[2])
    assert (quantizer(z).indices == 2).any()
