"""LFQ against brute force over all codes, and vector-quantize-pytorch."""

import pytest
import torch
import vector_quantize_pytorch

from stage1_tokenizer.quantizers.information import negative_information_of_bits
from stage1_tokenizer.quantizers.lfq import LFQ


def latents(c, n=40):
    return torch.randn(n, c, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


def listed(logits):
    """mean H and H(mean) from the 2^b probabilities of every vector."""
    b = logits.shape[1]
    patterns = torch.arange(2**b)[:, None] // 2 ** torch.arange(b) % 2
    p = (logits @ patterns.T.to(logits)).softmax(1)
    mean = p.mean(0)
    return -(p * p.log()).sum(1).mean(), -(mean * mean.log()).sum()


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_the_entropies_are_those_of_all_codes_in_value_and_gradient(bits):
    logits = latents(bits)
    sample, joint = listed(logits)
    mine = negative_information_of_bits(logits, bits)
    torch.testing.assert_close(mine, sample - joint)
    torch.testing.assert_close(torch.autograd.grad(mine, logits), torch.autograd.grad(sample - joint, logits))


def test_groups_bound_the_joint_entropy_from_above():
    logits = latents(6)
    values = [negative_information_of_bits(logits, size).item() for size in (1, 2, 3, 6)]
    assert values[0] < values[1] < values[3]
    sample, joint = listed(logits)
    parts = listed(logits[:, :3])[1] + listed(logits[:, 3:])[1]
    assert parts > joint
    torch.testing.assert_close(values[2], (sample - parts).item())


def test_agrees_with_an_independent_implementation_in_value_and_gradient():
    """At a temperature of 1: theirs clamps probabilities at 1e-5 inside the logarithm. Theirs numbers from the highest bit."""
    bits = 5
    quantizer = LFQ(bits, inverse_temperature=1.0).double()
    quantizer.anneal(1.0)
    options = {"codebook_size": 2**bits, "entropy_loss_weight": 0.1, "commitment_loss_weight": 0.25}
    other = vector_quantize_pytorch.LFQ(**options, force_quantization_f32=False).double()
    mine = latents(bits)
    theirs = mine.detach().clone().requires_grad_()
    out = quantizer(mine)
    codes, indices, loss = other(theirs[None], inv_temperature=1.0)
    lowest_first = torch.arange(bits)
    mirrored = ((out.indices >> lowest_first & 1) << lowest_first.flip(0)).sum(1)
    assert torch.equal(mirrored, indices[0])
    torch.testing.assert_close(out.codes, codes[0])
    total = torch.stack(list(out.losses.values())).sum()
    torch.testing.assert_close(total, loss, rtol=1e-3, atol=1e-5)
    (total + out.codes.square().sum()).backward()
    (loss + codes.square().sum()).backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("group_bits", "sizes"), [(None, (2**18,)), (9, (512, 512))])
def test_eighteen_bits_make_a_step(group_bits, sizes):
    quantizer = LFQ(18, group_bits)
    z = latents(18, 64).float().detach().requires_grad_()
    out = quantizer(z)
    (out.codes.sum() + sum(out.losses.values())).backward()
    assert quantizer.sizes == sizes
    assert torch.equal(out.codes > 0, z > 0)
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_every_index_is_its_bits():
    quantizer = LFQ(4)
    everything = torch.arange(16)[:, None]
    codes = quantizer.dequantize(everything)
    assert torch.equal(codes, (2 * (everything // torch.tensor([1, 2, 4, 8]) % 2) - 1).float())
    assert torch.equal(quantizer(codes).indices, everything)


def test_the_entropy_weight_falls_from_three_times_to_once():
    quantizer = LFQ(4, entropy_ramp=0.1).double()
    z = latents(4)
    seen = []
    for progress in (0.0, 0.05, 0.1, 1.0):
        quantizer.anneal(progress)
        seen.append(quantizer(z).losses["entropy"].item())
    torch.testing.assert_close([value / seen[-1] for value in seen], [3.0, 2.0, 1.0, 1.0])


@pytest.mark.parametrize("options", [{"bits": 10, "group_bits": 4}, {"bits": 38, "group_bits": 19}, {"bits": 0}])
def test_groups_that_do_not_fit_are_refused(options):
    with pytest.raises(ValueError, match="bits"):
        LFQ(**options)
