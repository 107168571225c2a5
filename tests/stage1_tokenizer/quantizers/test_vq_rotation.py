"""The rotation trick: its Jacobian, its angles, its singular points, and vector-quantize-pytorch."""

import torch
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from stage1_tokenizer.quantizers.estimators import rotation_trick
from stage1_tokenizer.quantizers.vq_rotation import VQRotation


def pairs(n=30, c=4):
    draw = torch.Generator().manual_seed(0)
    z, codes = torch.randn(2, n, c, generator=draw, dtype=torch.float64)
    return z.requires_grad_(), codes


def test_jacobian_is_a_rotation_times_the_ratio_of_lengths_and_takes_z_to_the_code():
    z, codes = pairs()
    for vector, code in zip(z, codes, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x, q=code: rotation_trick(x[None], q[None])[0], vector)
        rotation = jacobian * vector.norm() / code.norm()
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(4, dtype=torch.float64))
        torch.testing.assert_close(rotation.det(), torch.tensor(1.0, dtype=torch.float64))
        torch.testing.assert_close(jacobian @ vector, code)


def test_the_gradient_keeps_its_angle():
    z, codes = pairs()
    g = torch.randn(z.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (rotation_trick(z, codes) * g).sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(torch.cosine_similarity(z.grad, z), torch.cosine_similarity(g, codes))


def test_where_no_rotation_exists_the_gradient_is_a_multiple_of_the_identity():
    z = torch.tensor([[2.0, 1.0], [0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    codes = torch.tensor([[-4.0, -2.0], [1.0, 1.0], [0.0, 0.0]])
    out = rotation_trick(z, codes)
    assert torch.equal(out, codes)
    out.sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, torch.tensor([[2.0], [1.0], [1.0]]).expand(-1, 2))


def test_agrees_with_an_independent_implementation_and_is_what_the_quantizer_uses():
    torch.manual_seed(0)
    quantizer = VQRotation(4, 6).double()
    mine, _ = pairs()
    theirs = mine.detach().clone().requires_grad_()
    out = quantizer(mine)
    other = rotate_to(theirs, quantizer.codebook[out.indices[:, 0]])
    torch.testing.assert_close(out.codes, other)
    g = torch.randn(mine.shape, dtype=torch.float64)
    (out.codes * g).sum().backward()
    (other * g).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
