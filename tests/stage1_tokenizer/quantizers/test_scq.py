"""SCQ: the KKT conditions, an independent solver, implicit gradients by finite differences, both limits."""

import pytest
import torch
from scipy import optimize

from stage1_tokenizer.quantizers.scq import SCQ, convex_weights, on_support, project_onto_simplex

N, K, C = 12, 9, 3


@pytest.fixture
def problem():
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(N, C, generator=draw, dtype=torch.float64)
    codebook = torch.randn(K, C, generator=draw, dtype=torch.float64)
    return z, codebook, torch.cdist(z, codebook).argmin(1)


def objective(z, codebook, near, weight, p):
    target = torch.nn.functional.one_hot(near, K)
    return (z - p @ codebook).square().sum(1) + weight * (p - target).square().sum(1)


@pytest.mark.parametrize("weight", [0.01, 0.1, 1.0])
def test_the_kkt_conditions(problem, weight):
    z, codebook, near = problem
    p = convex_weights(z, codebook, near, weight, 2000)
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(1), torch.ones(N).double())
    leaf = p.clone().requires_grad_()
    (slope,) = torch.autograd.grad(objective(z, codebook, near, weight, leaf).sum(), leaf)
    lowest = slope.amin(1, keepdim=True)
    assert (slope - lowest)[p > 0].abs().max() < 1e-6  # equal on the support, not lower off it
    torch.testing.assert_close(on_support(z, codebook, near, weight, p > 0), p, rtol=0, atol=1e-7)


def test_an_independent_solver_agrees(problem):
    z, codebook, near = problem
    p = convex_weights(z, codebook, near, 0.1, 2000)
    simplex = {"type": "eq", "fun": lambda x: x.sum() - 1}
    for i in range(4):
        row = slice(i, i + 1)
        best = optimize.minimize(
            lambda x, row=row: objective(z[row], codebook, near[row], 0.1, torch.from_numpy(x)[None]).item(),
            torch.full((K,), 1 / K), bounds=[(0, 1)] * K, constraints=[simplex], options={"ftol": 1e-12},
        )
        torch.testing.assert_close(p[i], torch.from_numpy(best.x), rtol=0, atol=1e-4)


def test_gradients_are_those_of_the_solution(problem):
    z, codebook, near = problem

    def q(z, codebook):
        with torch.no_grad():
            support = convex_weights(z, codebook, near, 0.1, 1000) > 0
        return on_support(z, codebook, near, 0.1, support) @ codebook

    def q_plain(z, codebook):
        return convex_weights(z, codebook, near, 0.1, 1000) @ codebook

    cotangent = torch.randn(N, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = [z.requires_grad_(), codebook.requires_grad_()]
    gradients = torch.autograd.grad(q(*leaves), leaves, cotangent)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        ends = []
        for sign in (1e-5, -1e-5):
            moved = [x + sign * direction if x is leaf else x for x in leaves]
            ends.append((q_plain(*moved) * cotangent).sum())
        torch.testing.assert_close((gradient * direction).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-6)


def test_it_never_errs_more_than_the_hard_code_and_becomes_it(problem):
    z, codebook, near = problem
    hard = (z - codebook[near]).square().sum(1)
    soft = (z - convex_weights(z, codebook, near, 0.1, 500) @ codebook).square().sum(1)
    assert (soft <= hard + 1e-9).all()
    one_hot = torch.nn.functional.one_hot(near, K).double()
    torch.testing.assert_close(convex_weights(z, codebook, near, 1e3, 500), one_hot, rtol=0, atol=1e-2)


def test_the_projection_is_the_nearest_point_of_the_simplex():
    x = 2 * torch.randn(30, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = project_onto_simplex(x)
    torch.testing.assert_close(p.sum(1), torch.ones(30).double())
    corners = torch.eye(K, dtype=torch.float64)
    assert ((x - p)[:, None] * (corners - p[:, None])).sum(2).max() < 1e-9  # the variational inequality
    torch.testing.assert_close(project_onto_simplex(p), p)


def test_codes_are_soft_in_training_and_hard_in_eval(problem):
    z, codebook, near = problem
    quantizer = SCQ(C, K, iterations=500).double()
    quantizer.codebook.data.copy_(codebook)
    out = quantizer(z)
    assert torch.equal(out.indices[:, 0], near)
    torch.testing.assert_close(out.codes, convex_weights(z, codebook, near, 0.1, 500) @ codebook)
    assert torch.equal(quantizer.eval()(z).codes, codebook[near])
