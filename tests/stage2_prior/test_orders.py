"""The Halton order visits every cell once, evenly; Gumbel noise is finite and has its moments."""

from __future__ import annotations

import pytest
import torch

from stage2_prior.orders import ADAPTIVE_ORDERS, PLANNED_ORDERS, Candidates, gumbel, halton_ranks, radical_inverse


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 7), (3, 5), (8, 8), (16, 16), (13, 4)])
def test_halton_is_a_permutation(h, w):
    assert halton_ranks(h, w).flatten().sort().values.equal(torch.arange(h * w))


def test_halton_starts_with_the_known_cells():
    order = halton_ranks(16, 16).flatten().argsort()
    assert order[:8].tolist() == [133, 74, 193, 39, 172, 99, 232, 30]


def test_radical_inverse_mirrors_the_digits():
    assert radical_inverse(torch.tensor([1, 2, 3, 4]), 2).tolist() == [0.5, 0.25, 0.75, 0.125]
    assert radical_inverse(torch.tensor([5]), 3).item() == pytest.approx(2 / 3 + 1 / 9)


def test_halton_prefixes_are_more_even_than_random_ones():
    def unevenness(order):
        """Largest difference between the share of the first 16 cells in a corner rectangle and its share of the grid."""
        cells = order[:16]
        y, x = cells // 16, cells % 16
        inside = (y[:, None, None] < torch.arange(17)[:, None]) & (x[:, None, None] < torch.arange(17))
        area = torch.arange(17)[:, None] * torch.arange(17) / 256
        return (inside.float().mean(0) - area).abs().max().item()

    generator = torch.Generator().manual_seed(0)
    random = [unevenness(torch.randperm(256, generator=generator)) for _ in range(100)]
    assert unevenness(halton_ranks(16, 16).flatten().argsort()) < min(random)


@pytest.mark.parametrize("name", PLANNED_ORDERS)
def test_planned_orders_rank_all_positions_coarse_scales_first_where_that_is_the_plan(name):
    uniform = torch.rand(20, 21, generator=torch.Generator().manual_seed(0))
    priority = PLANNED_ORDERS[name](((1, 1), (2, 2), (4, 4)), uniform)
    order = priority.argsort(dim=1)
    assert order.sort(dim=1).values.equal(torch.arange(21).expand(20, -1))
    assert len({tuple(row) for row in order.tolist()}) > 5  # each sample has its own
    if name == "halton":
        assert (order[:, 0] == 0).all() and order[:, 1:5].sort(dim=1).values.equal(torch.arange(1, 5).expand(20, -1))


def test_gumbel_is_finite_and_has_its_moments():
    assert gumbel(torch.tensor([0.0, 1.0, 1 - 2**-24])).isfinite().all()
    noise = gumbel(torch.rand(200_000, generator=torch.Generator().manual_seed(0)))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(1.6449, abs=0.03)


def test_confidence_with_unit_noise_reveals_in_proportion_to_the_probability():
    n = 50_000
    probabilities = torch.tensor([0.6, 0.3, 0.1])  # of the tokens that were drawn at three positions
    logits = torch.stack([probabilities, 1 - probabilities], dim=-1).log() + 5.0
    candidates = Candidates(
        logits=[logits.expand(n, 3, 2)],
        values=torch.zeros(n, 3, 1, dtype=torch.long),
        uniform=torch.rand(n, 3, generator=torch.Generator().manual_seed(0)),
        choice_temperature=torch.ones(n, 1),
        foreseen=1,
    )
    first = ADAPTIVE_ORDERS["confidence"](candidates).argmin(1)
    assert (first.bincount(minlength=3) / n - probabilities).abs().max() < 0.01


@pytest.mark.parametrize("name", ["entropy", "maxprob"])
def test_entropy_and_maxprob_reveal_the_surest_position_first_whatever_was_drawn(name):
    logits = torch.randn(1, 3, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 9.0, 3.0])[:, None]
    scores = [
        ADAPTIVE_ORDERS[name](Candidates([logits], torch.full((1, 3, 1), value), torch.rand(1, 3), torch.ones(1, 1), 1))
        for value in (0, 5)
    ]
    assert scores[0].equal(scores[1]) and scores[0].argsort(dim=1).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize("name", ["entropy", "maxprob"])
def test_entropy_and_maxprob_do_not_look_at_logits_that_depend_on_what_was_drawn(name):
    first, second, other = torch.randn(3, 1, 4, 6, generator=torch.Generator().manual_seed(0)).unbind(0)
    values, noise, scale = torch.zeros(1, 4, 2, dtype=torch.long), torch.rand(1, 4), torch.ones(1, 1)
    order = ADAPTIVE_ORDERS[name]
    assert order(Candidates([first, second], values, noise, scale, 1)).equal(
        order(Candidates([first, other], values, noise, scale, 1))
    )
    assert not order(Candidates([first, second], values, noise, scale, 2)).equal(
        order(Candidates([first, other], values, noise, scale, 2))
    )
