"""Run by test_soft_assignment_triton in a process of its own, which imports triton with TRITON_INTERPRET=1.

python -m pytest imports nothing of it by itself: Triton reads the variable once, and other tests may import Triton too.
"""

import pytest
import torch

from stage1_tokenizer.quantizers.assignment import fused
from stage1_tokenizer.quantizers.soft_assignment import soft_assign

FIELDS = ("codes", "purity", "usage", "log_partition")
OPTIONS = [(), ("widths",), ("values", "prior"), ("widths", "values", "prior")]


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def results(backend, size, tau, similarity="squared_distance", options=(), dtype=torch.float64):
    """Every field and gradient for random inputs, with arbitrary cotangents."""
    n, k, c = size
    given = {
        "z": randn(n, c, seed=1),
        "codebook": randn(k, c, seed=2),
        "temperature": torch.tensor(tau, dtype=torch.float64),
        "widths": randn(k, seed=3).sigmoid() + 0.5,
        "values": randn(k, 3, seed=4),
        "prior": randn(k, seed=5),
    }
    leaves = [given[name].to(dtype).requires_grad_() for name in ("z", "codebook", "temperature", *options)]
    named = dict(zip(("z", "codebook", "temperature", *options), leaves, strict=True))
    soft = soft_assign(**named, similarity=similarity, collected=randn(n, 2, seed=6).to(dtype), backend=backend)
    fields = [getattr(soft, name) for name in FIELDS]
    gradients = torch.autograd.grad(fields, leaves, [randn(*field.shape, seed=7).to(dtype) for field in fields])
    return soft, [x.double() for x in (*fields, soft.sums, *gradients)]


@pytest.mark.parametrize("similarity", ["squared_distance", "cosine", "dot"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_field_and_gradient_equal_the_dense_ones(similarity, options):
    soft, found = results("triton", (19, 70, 5), 0.3, similarity, options)
    expected, numbers = results("dense", (19, 70, 5), 0.3, similarity, options)
    assert torch.equal(soft.index, expected.index)
    torch.testing.assert_close(found, numbers, rtol=1e-12, atol=1e-12)


def test_float32_is_right_to_its_rounding_and_so_are_its_indices():
    exact, numbers = results("dense", (37, 70, 5), 0.3)
    soft, found = results("triton", (37, 70, 5), 0.3, dtype=torch.float32)
    assert torch.equal(soft.index, exact.index)
    for x, y in zip(found, numbers, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5 * y.abs().max().clamp_min(1).item())


@pytest.mark.parametrize("field", FIELDS)
def test_the_gradient_of_one_field_alone(field):
    z, codebook = randn(20, 3, seed=1).requires_grad_(), randn(40, 3, seed=2).requires_grad_()
    found, expected = (
        torch.autograd.grad(getattr(soft_assign(z, codebook, 0.5, backend=backend), field).square().sum(), [z, codebook])
        for backend in ("triton", "dense")
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("near", [True, False])
def test_blocks_that_weigh_nothing_are_skipped_and_nothing_changes(near):
    """Vectors of one block near the first codes: blocks of far codes are left out of every sum, in both directions."""
    codebook = torch.cat([randn(32, 3, seed=2), randn(64, 3, seed=3) + (0.0 if near else 30.0)]).requires_grad_()
    z = randn(16, 3, seed=1).requires_grad_()
    sums = []
    for backend in ("triton", "dense"):
        soft = soft_assign(z, codebook, 1.0, backend=backend)
        loss = soft.codes.square().sum() + soft.purity.sum() + soft.usage.square().sum() + soft.log_partition.sum()
        sums.append((loss, *torch.autograd.grad(loss, [z, codebook])))
        assert soft.skipped == (0 if near or backend == "dense" else pytest.approx(2 / 3))
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-12, atol=1e-12)


def test_the_lowest_of_equal_codes_is_chosen():
    z, codebook = randn(20, 3, seed=1), randn(40, 3, seed=2)
    lowest = soft_assign(z, codebook, 0.1, backend="dense").index
    assert torch.equal(soft_assign(z, codebook.repeat(3, 1), 0.1, backend="triton").index, lowest)


@pytest.mark.parametrize("columns", [4, 5])
def test_pytorch_takes_the_operator_for_a_good_one(columns):
    left, right = (torch.randn(rows, columns).requires_grad_() for rows in (20, 33))
    with torch.no_grad():
        right[:, 3:] -= right[:, 3:].amax() + 1  # biases, and slopes of positive squares
        left[:, 3] = 1
        left[:, 4:] = left[:, 4:].square()
    torch.library.opcheck(fused.assign_op, (left, right, torch.randn(33, 2).requires_grad_(), torch.randn(20, 2), 3))


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_it_compiles_as_one_graph(compiler):
    def loss(z, codebook):
        soft = soft_assign(z, codebook, 0.5, backend="triton")
        return soft.codes.square().sum() + soft.usage.square().sum()

    inputs = [torch.randn(rows, 3).requires_grad_() for rows in (20, 33)]
    compiled = torch.compile(loss, backend=compiler, fullgraph=True)
    found, expected = (torch.autograd.grad(function(*inputs), inputs) for function in (compiled, loss))
    torch.testing.assert_close(found, expected)
