"""Run by test_soft_assignment_triton in a process of its own: with TRITON_INTERPRET=1 on the CPU, without it on a GPU.

python -m pytest imports nothing of it by itself: Triton reads the variable once, and other tests may import Triton too.
The interpreter shows in float64 that the formulas are right; a GPU has float32, and there the streaming backend is tested too.
"""

import os

import pytest
import torch

from stage1_tokenizer.quantizers.assignment import fused
from stage1_tokenizer.quantizers.soft_assignment import soft_assign

GPU = "TRITON_INTERPRET" not in os.environ
DEVICE, DTYPE, CLOSE = ("cuda", torch.float32, 2e-5) if GPU else ("cpu", torch.float64, 1e-12)
BACKENDS = ("triton", "streaming") if GPU else ("triton",)
SIZES = [(19, 70, 5), (300, 1000, 64), (130, 257, 200)] if GPU else [(19, 70, 5)]
FIELDS = ("codes", "purity", "usage", "log_partition")
OPTIONS = [(), ("widths",), ("values", "prior"), ("widths", "values", "prior")]


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(found, expected):
    """To the rounding of the numbers, of each tensor's largest (or 1)."""
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x.cpu().double(), y, rtol=0, atol=CLOSE * y.abs().max().clamp_min(1).item())


def results(backend, size, tau, similarity="squared_distance", options=(), dtype=DTYPE, device=DEVICE):
    """Every field and gradient for random inputs, with arbitrary cotangents; "dense" in float64 on the CPU: the oracle."""
    dtype, device = (torch.float64, "cpu") if backend == "dense" else (dtype, device)
    n, k, c = size
    given = {
        "z": randn(n, c, seed=1),
        "codebook": randn(k, c, seed=2),
        "temperature": torch.tensor(tau, dtype=torch.float64),
        "widths": randn(k, seed=3).sigmoid() + 0.5,
        "values": randn(k, 3, seed=4),
        "prior": randn(k, seed=5),
    }
    leaves = [given[name].to(device, dtype).requires_grad_() for name in ("z", "codebook", "temperature", *options)]
    named = dict(zip(("z", "codebook", "temperature", *options), leaves, strict=True))
    soft = soft_assign(**named, similarity=similarity, collected=randn(n, 2, seed=6).to(device, dtype), backend=backend)
    fields = [getattr(soft, name) for name in FIELDS]
    gradients = torch.autograd.grad(fields, leaves, [randn(*field.shape, seed=7).to(field) for field in fields])
    return soft, [x.cpu().double() for x in (*fields, soft.sums, *gradients)]


@pytest.mark.parametrize("similarity", ["squared_distance", "cosine", "dot"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_field_and_gradient_equal_the_dense_ones(backend, size, options, similarity):
    tau = 0.3 * size[2] / 5
    soft, found = results(backend, size, tau, similarity, options)
    expected, numbers = results("dense", size, tau, similarity, options)
    assert torch.equal(soft.index.cpu(), expected.index)
    same(found, numbers)
    _, repeated = results(backend, size, tau, similarity, options)
    assert all(map(torch.equal, repeated, found)), "results repeat bit for bit"


@pytest.mark.parametrize("size", [(37, 70, 5), (1, 33, 3), (33, 1, 2)], ids=str)
@pytest.mark.parametrize("tau", [0.3, 0.003])
def test_float32_is_right_to_its_rounding_and_so_are_its_indices(size, tau):
    exact, numbers = results("dense", size, tau)
    soft, found = results("triton", size, tau, dtype=torch.float32)
    assert torch.equal(soft.index.cpu(), exact.index)
    for x, y in zip(found, numbers, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5 * y.abs().max().clamp_min(1).item() * max(1, 0.03 / tau))


def on(device, *tensors):
    """Leaves there; float64 but for a GPU."""
    return [x.to(device, DTYPE if device == DEVICE else torch.float64).requires_grad_() for x in tensors]


@pytest.mark.parametrize("field", FIELDS)
def test_the_gradient_of_one_field_alone(field):
    found = []
    for backend, device in (("triton", DEVICE), ("dense", "cpu")):
        z, codebook = on(device, randn(20, 3, seed=1), randn(40, 3, seed=2))
        value = getattr(soft_assign(z, codebook, 0.5, backend=backend), field)
        found.append(torch.autograd.grad(value.square().sum(), [z, codebook]))
    same(*found)


@pytest.mark.parametrize("near", [True, False])
def test_blocks_that_weigh_nothing_are_skipped_and_nothing_changes(near):
    """Vectors of one block near the first codes: blocks of far codes are left out of every sum, in both directions."""
    codebook = torch.cat([randn(32, 3, seed=2), randn(64, 3, seed=3) + (0.0 if near else 30.0)])
    sums = []
    for backend, device in (("triton", DEVICE), ("dense", "cpu")):
        z, codes = on(device, randn(16, 3, seed=1), codebook)
        soft = soft_assign(z, codes, 1.0, backend=backend)
        loss = soft.codes.square().sum() + soft.purity.sum() + soft.usage.square().sum() + soft.log_partition.sum()
        sums.append((loss, *torch.autograd.grad(loss, [z, codes])))
        if not GPU:  # which chooses blocks by itself
            assert soft.skipped == (0 if near or backend == "dense" else pytest.approx(2 / 3))
    same(*sums)


def test_the_lowest_of_equal_codes_is_chosen():
    z, codebook = (x.detach() for x in on(DEVICE, randn(20, 3, seed=1), randn(40, 3, seed=2)))
    lowest = soft_assign(z, codebook, 0.1, backend="dense").index
    assert torch.equal(soft_assign(z, codebook.repeat(3, 1), 0.1, backend="triton").index, lowest)


@pytest.mark.parametrize("columns", [4, 5])
def test_pytorch_takes_the_operator_for_a_good_one(columns):
    left, right = (torch.randn(rows, columns, device=DEVICE).requires_grad_() for rows in (20, 33))
    with torch.no_grad():
        right[:, 3:] -= right[:, 3:].amax() + 1  # biases, and slopes of positive squares
        left[:, 3] = 1
        left[:, 4:] = left[:, 4:].square()
    values, collected = (torch.randn(rows, 2, device=DEVICE) for rows in (33, 20))
    torch.library.opcheck(fused.assign_op, (left, right, values.requires_grad_(), collected, 3))


@pytest.mark.parametrize("compiler", ["eager", "aot_eager", *(["inductor"] if GPU else [])])
def test_it_compiles_as_one_graph(compiler):
    def loss(z, codebook):
        soft = soft_assign(z, codebook, 0.5, backend="triton")
        return soft.codes.square().sum() + soft.usage.square().sum()

    inputs = [torch.randn(rows, 3, device=DEVICE).requires_grad_() for rows in (20, 33)]
    compiled = torch.compile(loss, backend=compiler, fullgraph=True)
    found, expected = (torch.autograd.grad(function(*inputs), inputs) for function in (compiled, loss))
    torch.testing.assert_close(found, expected)
