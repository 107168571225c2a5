"""SimVQ: only the map learns, every code moves, and vector-quantize-pytorch agrees."""

import torch
import vector_quantize_pytorch

from stage1_tokenizer.quantizers.simvq import SimVQ
from stage1_tokenizer.quantizers.vq import VQ


def make(n=40, k=20, c=4):
    torch.manual_seed(0)
    return SimVQ(c, k).double(), torch.randn(n, c, dtype=torch.float64, requires_grad=True)


def test_agrees_with_an_independent_implementation_in_value_and_gradient():
    quantizer, z = make()
    transform = torch.nn.Linear(4, 4, bias=False)
    other = vector_quantize_pytorch.SimVQ(4, 20, codebook_transform=transform, rotation_trick=False).double()
    other.get_buffer("frozen_codebook").copy_(quantizer.frozen)
    transform.load_state_dict(quantizer.transform.state_dict())
    theirs = z.detach().clone().requires_grad_()
    out = quantizer(z)
    codes, indices, loss = other(theirs[None])
    assert torch.equal(out.indices[:, 0], indices[0])
    torch.testing.assert_close(out.codes, codes[0])
    total = torch.stack(list(out.losses.values())).sum()
    torch.testing.assert_close(total, loss)
    (total + out.codes.square().sum()).backward()
    (loss + codes.square().sum()).backward()
    torch.testing.assert_close(z.grad, theirs.grad)
    # their codes' straight-through value hands W no gradient, nor does ours
    torch.testing.assert_close(quantizer.transform.weight.grad, transform.weight.grad)


def test_one_chosen_code_moves_all_and_the_constant_stays():
    quantizer, z = make(n=1)
    before = quantizer.dequantize(torch.arange(20)[:, None]).detach()
    quantizer(z).losses["codebook"].backward()
    assert not quantizer.frozen.requires_grad
    with torch.no_grad():
        weight = quantizer.transform.weight
        assert weight.grad is not None
        weight -= 0.1 * weight.grad
    assert (quantizer.dequantize(torch.arange(20)[:, None]) != before).any(1).all()


def test_with_the_identity_it_is_vq():
    quantizer, z = make()
    quantizer.transform.weight.data.copy_(torch.eye(4))
    plain = VQ(4, 20).double()
    plain.codebook.data.copy_(quantizer.frozen)
    mine, theirs = quantizer(z), plain(z)
    assert torch.equal(mine.indices, theirs.indices)
    torch.testing.assert_close(mine.codes, theirs.codes)
    torch.testing.assert_close(mine.losses, theirs.losses)
