"""Cross-entropy without the n x k matrix: the plain one's value and gradients, for every way of cutting the rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stage2_prior import cross_entropy
from stage2_prior.cross_entropy import linear_cross_entropy, linear_nats, rows_at_once


def problem(n, k, c, dtype=torch.float64, scale=1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + k)
    features, vectors, bias = (torch.randn(size, generator=generator, dtype=dtype) for size in ((n, c), (k, c), (k,)))
    targets = torch.randint(k, (n,), generator=generator)
    targets[: n // 2] = targets[n - n // 2 :]  # several rows with the same target
    return (features * scale).requires_grad_(), vectors.requires_grad_(), bias.requires_grad_(), targets


def float32(features, vectors, bias, targets) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first, second, third = (each.detach().float().requires_grad_() for each in (features, vectors, bias))
    return first, second, third, targets


def plain(features, vectors, bias, targets, label_smoothing=0.0):
    return F.cross_entropy(F.linear(features, vectors, bias), targets, label_smoothing=label_smoothing, reduction="sum")


def value_and_gradients(function, inputs, *more):
    loss = function(*inputs, *more)
    return loss.detach(), *torch.autograd.grad(0.3 * loss, inputs[:3])  # a factor, as the loss's mean has


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("n", "k", "c"), [(37, 53, 7), (8, 64, 3), (1, 5, 4), (64, 2, 1), (40, 1, 6)])
@pytest.mark.parametrize("held", [1, 1800, 1 << 24])  # 16 rows at a time, a ragged last piece, all rows at once
def test_value_and_gradients_are_those_of_the_plain_writing(monkeypatch, n, k, c, label_smoothing, held):
    monkeypatch.setitem(cross_entropy.HELD, "cpu", held)
    inputs = problem(n, k, c)
    ours = value_and_gradients(linear_cross_entropy, inputs, label_smoothing)
    torch.testing.assert_close(ours, value_and_gradients(plain, inputs, label_smoothing), rtol=1e-12, atol=1e-12)
    nats = F.cross_entropy(F.linear(*inputs[:3]), inputs[3], reduction="none")
    torch.testing.assert_close(linear_nats(*inputs), nats.detach(), rtol=1e-12, atol=1e-12)


def test_float32_is_as_near_to_float64_as_the_plain_writing(monkeypatch):
    monkeypatch.setitem(cross_entropy.HELD, "cpu", 1 << 18)
    exact = value_and_gradients(plain, problem(200, 16_384, 16), 0.1)
    for ours, theirs in zip(
        value_and_gradients(linear_cross_entropy, float32(*problem(200, 16_384, 16)), 0.1), exact, strict=True
    ):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_logits_far_from_zero_neither_overflow_nor_vanish():
    inputs = float32(*problem(30, 40, 8, scale=1e3))
    torch.testing.assert_close(
        value_and_gradients(linear_cross_entropy, inputs, 0.1), value_and_gradients(plain, inputs, 0.1), rtol=1e-5, atol=1e-4
    )


class LargestTensor(TorchDispatchMode):
    """Notes the most numbers that any operation's result held."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.numbers = max(self.numbers, leaf.numel())
        return result


def test_no_tensor_is_as_large_as_rows_times_codes(monkeypatch):
    n, k, c = 512, 4096, 8
    monkeypatch.setitem(cross_entropy.HELD, "cpu", 64 * k)
    inputs = float32(*problem(n, k, c))
    with LargestTensor() as ours:
        linear_cross_entropy(*inputs, 0.1).backward()
        linear_nats(*inputs)
    with LargestTensor() as theirs:
        plain(*inputs, 0.1).backward()
    assert ours.numbers == 64 * k and theirs.numbers == n * k


def test_what_needs_no_gradient_gets_none_and_costs_none():
    features, vectors, bias, targets = problem(20, 30, 4)
    frozen = vectors.detach()
    linear_cross_entropy(features, frozen, bias, targets, 0.1).backward()
    expected = torch.autograd.grad(plain(features, frozen, bias, targets, 0.1), (features, bias))
    torch.testing.assert_close((features.grad, bias.grad), expected)
    assert vectors.grad is None
    with torch.no_grad():
        assert not linear_cross_entropy(features, vectors, bias, targets).requires_grad


@pytest.mark.parametrize("name", ["features", "vectors", "bias"])
def test_an_input_alone_gets_the_same_gradient(name):
    features, vectors, bias, targets = problem(20, 30, 4)
    inputs = {"features": features, "vectors": vectors, "bias": bias}
    first, second, third = (each if key == name else each.detach() for key, each in inputs.items())
    ours = torch.autograd.grad(linear_cross_entropy(first, second, third, targets, 0.1), inputs[name])
    torch.testing.assert_close(ours, torch.autograd.grad(plain(first, second, third, targets, 0.1), inputs[name]))


def test_bf16_autocast_sums_in_float32():
    # 300 codes of about equal logits: probabilities that bfloat16 alone would sum to 256 at most
    features, vectors, bias, targets = problem(600, 300, 8)
    inputs = float32(0.1 * features, 0.1 * vectors, bias, targets)
    with torch.autocast("cpu", torch.bfloat16):
        ours, nats = value_and_gradients(linear_cross_entropy, inputs, 0.1), linear_nats(*inputs)
    loss, *gradients = value_and_gradients(plain, inputs, 0.1)
    assert nats.dtype == torch.float32
    torch.testing.assert_close(ours[0], loss, rtol=2e-3, atol=0)
    for found, wanted in zip(ours[1:], gradients, strict=True):
        assert found.dtype == torch.float32 and (found - wanted).norm() < 1e-2 * wanted.norm()


def test_float16_is_worked_out_in_float32():
    """100,000 codes of 1.5e-8 each, nothing in float16, together pull at the features."""
    features, vectors, bias = torch.zeros(1, 1, requires_grad=True), torch.ones(100_000, 1), torch.zeros(100_000)
    vectors[0], bias[0] = 0.0, 18.0
    with torch.autocast("cpu", torch.float16):
        linear_cross_entropy(features, vectors, bias, torch.tensor([0])).backward()
    rest = 99_999 * torch.tensor(-18.0).exp()
    torch.testing.assert_close(features.grad, (rest / (1 + rest)).view(1, 1), rtol=1e-2, atol=0)


def test_gradients_are_given_away_once():
    features, vectors, bias, targets = problem(8, 9, 3)
    loss = linear_cross_entropy(features, vectors, bias, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="given away"):
        loss.backward()


def test_no_rows_cost_nothing():
    features, vectors, bias, _ = problem(1, 9, 3)
    nothing = torch.zeros(0, dtype=torch.long)
    loss = linear_cross_entropy(features[:0], vectors, bias, nothing, 0.1)
    assert loss == 0 and linear_nats(features[:0], vectors, bias, nothing).shape == (0,)
    loss.backward()
    assert vectors.grad is not None and not vectors.grad.any()


def test_rows_at_once_are_a_multiple_of_sixteen_and_at_least_that(monkeypatch):
    monkeypatch.setitem(cross_entropy.HELD, "cpu", 1000)
    cpu = torch.device("cpu")
    assert [rows_at_once(k, cpu) for k in (1, 10, 60, 5000)] == [992, 96, 16, 16]
    assert rows_at_once(10, cpu, share=4) == 16
