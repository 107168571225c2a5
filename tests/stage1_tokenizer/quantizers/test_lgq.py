"""LGQ: the published objective against its plain writing, and what each repair promises."""

from typing import TypeVar

import pytest
import torch
from torch import Tensor

from stage1_tokenizer.quantizers.lgq import LGQ
from stage1_tokenizer.quantizers.lgq_paper import LGQPaper

N, K, C = 24, 10, 4
AS_PUBLISHED = {
    "temperature_end": 0.1,
    "schedule": "linear",
    "relative_temperature": False,
    "straight_through_weight": 0.0,
    "split_gradients": False,
    "unbiased_usage": False,
    "global_usage": False,
    "revive_below": 0.0,
}


Kind = TypeVar("Kind", LGQ, LGQPaper)


def prepared(quantizer: Kind) -> tuple[Kind, Tensor, Tensor]:
    """In float64 with a random codebook; vectors; the gradient of a decoder."""
    draw = torch.Generator().manual_seed(0)
    quantizer.double().codebook.data.copy_(torch.randn(K, C, generator=draw, dtype=torch.float64))
    z = torch.randn(N, C, generator=draw, dtype=torch.float64, requires_grad=True)
    return quantizer, z, torch.randn(N, C, generator=draw, dtype=torch.float64)


def make(**options):
    return prepared(LGQ(C, K, **options))


def published(z, c, tau, peak_weight, bins_weight, floor_weight, p_min):
    """The published objective, line by line, with the (n, k, c) differences."""
    d = (z[:, None, :] - c[None, :, :]).pow(2).sum(2)
    p = torch.softmax(-d / tau, 1)
    q_soft = p @ c
    q_hard = c[p.argmax(1)]
    q = q_soft + (q_hard - q_soft).detach()
    recon = (q - z).pow(2).mean()
    peak = torch.relu(1 - p.pow(2).sum(1)).mean()
    u = p.sum(0) / len(z)
    bins = len(c) * u.pow(2).sum()
    floor = torch.relu(p_min - torch.exp(-(u * u.log()).sum())).pow(2)
    return q, recon + peak_weight * peak + bins_weight * bins + floor_weight * floor


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("floor", [0.0, 0.02])
def test_the_paper_to_the_letter(progress, floor):
    quantizer, z, cotangent = prepared(
        LGQPaper(C, K, floor_weight=floor, min_perplexity=float(K), usage_weight=0.3, peak_weight=0.2)
    )
    quantizer.anneal(progress)
    out = quantizer(z)
    q, loss = published(z, quantizer.codebook, 1 - 0.9 * progress, 0.2, 0.3, floor, K)
    torch.testing.assert_close(out.codes, q, rtol=0, atol=1e-14)
    total = sum(out.losses.values())
    torch.testing.assert_close(total, loss, rtol=1e-10, atol=1e-10)
    mine = torch.autograd.grad((out.codes * cotangent).sum() + total, [z, quantizer.codebook])
    theirs = torch.autograd.grad((q * cotangent).sum() + loss, [z, quantizer.codebook])
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_the_published_start_repeats_vectors_only_when_it_must():
    quantizer, z, _ = prepared(LGQPaper(C, K))
    quantizer.initialize(z)
    assert all((code == z).all(1).any() for code in quantizer.codebook)
    quantizer.initialize(z[:3])
    nearest = (quantizer.codebook[:, None] - z[:3]).abs().amax(-1).amin(1)
    assert 0 < nearest.max() < 0.06


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_without_its_repairs_it_is_the_paper(progress):
    ours, z, cotangent = make(**AS_PUBLISHED)
    paper, _, _ = prepared(LGQPaper(C, K))
    results = []
    for quantizer in (ours, paper):
        quantizer.anneal(progress)
        out = quantizer(z)
        total = (out.codes * cotangent).sum() + sum(out.losses.values())
        results.append((total, *torch.autograd.grad(total, [z, quantizer.codebook])))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_relative_temperature_follows_the_scale_of_the_latents(size):
    """(z, c) -> (a z + b, a c + b) changes no assignment: the usage and peak terms and the Jacobian stay."""
    plain, z, cotangent = make(global_usage=False)
    scaled, _, _ = make(global_usage=False)
    scaled.codebook.data.copy_(size * plain.codebook + 3 * size)
    moved = (size * z.detach() + 3 * size).requires_grad_()
    a, b = plain(z), scaled(moved)
    assert torch.equal(a.indices, b.indices)
    for term in ("peak", "usage"):
        torch.testing.assert_close(a.losses[term], b.losses[term], rtol=1e-6, atol=1e-9)
    mine, theirs = torch.autograd.grad(a.codes, z, cotangent)[0], torch.autograd.grad(b.codes, moved, cotangent)[0]
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


def test_the_encoder_still_gets_the_decoders_gradient_when_assignments_saturate():
    saturated = {"temperature_start": 1e-4, "relative_temperature": False}
    for rho in (0.0, 0.5, 1.0):
        quantizer, z, cotangent = make(straight_through_weight=rho, **saturated)
        (gradient,) = torch.autograd.grad(quantizer(z).codes, z, cotangent)
        torch.testing.assert_close(gradient, rho * cotangent, rtol=0, atol=1e-6)


@pytest.mark.parametrize("free_energy", [True, False])
def test_the_codebook_term_moves_codes_and_the_commitment_term_moves_vectors(free_energy):
    quantizer, z, _ = make(follow="free_energy" if free_energy else "nearest", relative_temperature=False)
    out = quantizer(z)
    to_z, to_codes = torch.autograd.grad(
        out.losses["codebook"], [z, quantizer.codebook], retain_graph=True, materialize_grads=True
    )
    assert to_z.abs().max() < 1e-12
    distances = (z[:, None] - quantizer.codebook[None]).square().sum(-1)
    p = (-distances).softmax(1) if free_energy else torch.nn.functional.one_hot(out.indices[:, 0], K).double()
    torch.testing.assert_close(to_codes, 2 / (N * C) * (p.sum(0)[:, None] * quantizer.codebook - p.T @ z))
    to_z, to_codes = torch.autograd.grad(
        out.losses["commitment"], [z, quantizer.codebook], materialize_grads=True
    )
    torch.testing.assert_close(to_z, 0.25 * 2 / (N * C) * (z - out.codes))
    assert to_codes.abs().max() == 0


def test_the_gap_is_a_moving_average_that_anneal_applies():
    quantizer, z, _ = make()
    quantizer.initialize(z.detach())
    first = quantizer.gap.clone()
    quantizer(3 * z)
    assert quantizer.gap == first
    seen = quantizer.new_gap.clone()
    quantizer.anneal(0.2)
    torch.testing.assert_close(quantizer.gap, 0.9 * first + 0.1 * seen)
    torch.testing.assert_close(quantizer.t, torch.tensor(0.05**0.2, dtype=torch.float64))


@pytest.mark.parametrize("codes", [1, K])
@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_without_any_gap_gradients_stay_finite(codes, progress):
    quantizer = LGQ(C, codes)
    quantizer.codebook.data.fill_(0.3)
    z = torch.randn(N, C, generator=torch.Generator().manual_seed(0)).requires_grad_()
    quantizer.anneal(progress)
    out = quantizer(z)
    total = out.codes.sum() + torch.stack(list(out.losses.values())).sum()
    for gradient in torch.autograd.grad(total, [z, quantizer.codebook]):
        assert gradient.abs().max() < 1.1 * N  # a single code gets the decoder's whole gradient


def test_the_em_step_moves_codes_to_the_means_of_their_vectors():
    """With all mass new, codes become the responsibilities' means; with mass from before, they go a part of the way."""
    quantizer, z, _ = make(mass_decay=0.5, relative_temperature=False, revive_below=0.0)
    before = quantizer.codebook.detach().clone()
    p = (-(z[:, None] - before[None]).square().sum(-1)).softmax(1).detach()
    mass, means = p.sum(0), p.T @ z.detach() / p.sum(0)[:, None]
    quantizer.mass.copy_(3 * mass)
    quantizer(z)
    quantizer.anneal(0.0)
    torch.testing.assert_close(quantizer.codebook.detach(), before + (0.5 / 2) * (means - before))
    once = quantizer.codebook.detach().clone()
    quantizer.anneal(0.0)
    assert torch.equal(quantizer.codebook, once)  # nothing new was seen
    every, _, _ = make(mass_decay=0.0, relative_temperature=False, revive_below=0.0)
    every(z)
    every.anneal(0.0)
    torch.testing.assert_close(every.codebook.detach(), means)


def test_dead_codes_come_back_at_vectors_of_the_batch():
    quantizer, z, _ = make(follow="nearest")
    quantizer.codebook.data[[1, 4]] = 1e3
    quantizer.shares[[1, 4]] = 0.0
    out = quantizer(z)
    kept = quantizer.codebook.detach().clone()
    quantizer.anneal(0.0)
    changed = (quantizer.codebook != kept).any(1)
    assert changed.nonzero()[:, 0].tolist() == [1, 4]
    for code in quantizer.codebook[[1, 4]]:
        assert (code == z).all(1).any()
    assert not torch.isin(out.indices, torch.tensor([1, 4])).any()
    assert torch.isin(torch.tensor([1, 4]), quantizer(z).indices).all()


def test_training_finds_clusters_from_a_poor_start():
    draw = torch.Generator().manual_seed(1)
    centres = torch.randn(16, 3, generator=draw)
    quantizer = LGQ(3, 16)
    quantizer.codebook.data.mul_(0.01)
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.03)
    for step in range(150):
        z = centres[torch.randint(0, 16, (128,), generator=draw)] + 0.02 * torch.randn(128, 3, generator=draw)
        quantizer.anneal(step / 150)
        optimizer.zero_grad()
        torch.stack(list(quantizer(z).losses.values())).sum().backward()
        optimizer.step()
    error = (quantizer.eval()(centres).codes - centres).square().mean()
    assert error < 0.05
