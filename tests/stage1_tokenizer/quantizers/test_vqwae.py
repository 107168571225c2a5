"""VQ-WAE: the plan's marginals and duality, Hungarian matching in the limit, the envelope gradient."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from stage1_tokenizer.quantizers import vqwae
from stage1_tokenizer.quantizers.nearest import squared_distances
from stage1_tokenizer.quantizers.vqwae import VQWAE, transport_plan

N, K, C = 24, 8, 3


def points(n, seed=0):
    return torch.randn(n, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("epsilon", [0.3, 1.0])
def test_marginals_and_optimality(epsilon):
    cost = squared_distances(points(N), points(K, 1))
    plan = transport_plan(cost, epsilon, 200)
    torch.testing.assert_close(plan.sum(1), torch.full((N,), 1 / N).double())
    torch.testing.assert_close(plan.sum(0), torch.full((K,), 1 / K).double())
    potentials = cost + epsilon * plan.log()  # = f_i + g_k exactly when the plan is optimal
    potentials -= potentials.mean(1, keepdim=True)
    torch.testing.assert_close(potentials, potentials.mean(0).expand(N, -1), rtol=0, atol=1e-9)


def test_with_as_many_vectors_as_codes_it_becomes_the_hungarian_matching():
    cost = squared_distances(points(K), points(K, 1))
    best = cost.numpy()[linear_sum_assignment(cost.numpy())].mean()
    costs = [(transport_plan(cost, epsilon, 1000) * cost).sum().item() for epsilon in (1.0, 0.3, 0.02)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == pytest.approx(best, rel=1e-3)
    same = squared_distances(points(K), points(K))
    assert (transport_plan(same, 1e-3, 50) * same).sum() < 1e-9


def test_gradients_are_those_of_the_envelope():
    quantizer = VQWAE(C, K).double()
    z = points(N).requires_grad_()
    loss = quantizer(z).losses["transport"]
    to_z, to_codes = torch.autograd.grad(loss, [z, quantizer.codebook])
    cost = (z[:, None] - quantizer.codebook).square().sum(2).detach()
    plan = transport_plan(cost, 0.1 * cost.mean(), 30)
    difference = (z[:, None] - quantizer.codebook).detach() * plan[:, :, None] * 2 / C
    torch.testing.assert_close(loss, (plan * cost).sum() / C)
    torch.testing.assert_close(to_z, difference.sum(1))
    torch.testing.assert_close(to_codes, -difference.sum(0))


def test_it_brings_a_collapsed_codebook_back_into_use():
    quantizer = VQWAE(C, K).double()
    quantizer.codebook.data.mul_(0.01).add_(3)
    z = points(200, 2)
    for _ in range(40):
        (gradient,) = torch.autograd.grad(quantizer(z).losses["transport"], [quantizer.codebook])
        quantizer.codebook.data -= gradient * C * K / 4  # half of the way to the vectors' means
    counts = torch.bincount(quantizer.eval()(z).indices[:, 0], minlength=K)
    assert counts.min() > 0.25 * 200 / K


@pytest.mark.parametrize("regularisation", [0.1, 0.005])
def test_without_holding_the_plan_it_is_the_same(monkeypatch, regularisation):
    results = []
    for dense in (1 << 20, 0):
        monkeypatch.setattr(vqwae, "DENSE", dense)
        quantizer = VQWAE(C, K, regularisation=regularisation).double()
        quantizer.codebook.data.copy_(points(K, 1) + 2)
        z = (points(N) + 2).requires_grad_()
        loss = quantizer(z).losses["transport"]
        results.append((loss, *torch.autograd.grad(loss, [z, quantizer.codebook])))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)
