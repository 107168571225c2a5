"""GRIT-VQ: the Jacobians of its three radii."""

from typing import Any

import pytest
import torch

from stage1_tokenizer.quantizers.grit import GRIT


def make(radius):
    torch.manual_seed(0)
    quantizer = GRIT(4, 6, radius=radius).double()
    quantizer.transform.data += 0.3 * torch.randn(4, 4)
    return quantizer, torch.randn(1, 4, dtype=torch.float64)


SLOPES = {"bounded": lambda s: 1 / (1 + s) ** 2, "distance": lambda s: 1.0, "constant": lambda s: 0.0}


@pytest.mark.parametrize("radius", SLOPES)
def test_value_is_the_code_and_jacobians_are_those_of_the_radius(radius):
    quantizer, z = make(radius)
    out = quantizer(z)
    book = quantizer.codebook @ quantizer.transform.T
    code = book[(z - book).square().sum(1).argmin()].detach()
    torch.testing.assert_close(out.codes[0], code)
    assert torch.equal(out.codes, quantizer.dequantize(out.indices))
    gap = (code - z[0]).norm()
    u = (code - z[0]) / gap
    along = SLOPES[radius](gap) * torch.outer(u, u)
    to_z = torch.autograd.functional.jacobian(lambda x: quantizer(x[None]).codes[0], z[0])
    torch.testing.assert_close(to_z, torch.eye(4, dtype=torch.float64) - along)
    codes = quantizer(z.requires_grad_()).codes[0]
    options: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    rows = [torch.autograd.grad(code, quantizer.codebook, **options)[0] for code in codes]
    torch.testing.assert_close(torch.stack(rows)[:, out.indices[0, 0]], along @ quantizer.transform)


@pytest.mark.parametrize("radius", SLOPES)
def test_the_codebook_term_stands_in_where_the_surrogate_moves_no_code(radius):
    quantizer, z = make(radius)
    assert set(quantizer(z).losses) == {"commitment"} | ({"codebook"} if radius == "constant" else set())


@pytest.mark.parametrize("radius", SLOPES)
def test_a_vector_on_its_code_has_finite_gradients(radius):
    quantizer, _ = make(radius)
    z = quantizer.dequantize(torch.tensor([[2]])).detach().requires_grad_()
    quantizer(z).codes.sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_the_map_starts_as_the_identity_and_a_typo_gets_help():
    assert torch.equal(GRIT(3, 5).transform, torch.eye(3))
    with pytest.raises(ValueError, match="did you mean bounded"):
        GRIT(3, 5, radius="bound")
