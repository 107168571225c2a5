"""Drawing a token: the right distribution, to its edges; draws that belong to a seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.core.errors import UserError
from stage2_prior.drawing import Cut, SampleRng, draw, draw_largest, gumbel


@pytest.mark.parametrize("way", [draw, draw_largest])
def test_draw_follows_temperature_top_k_and_top_p(way):
    logits = torch.tensor([1.0, 3.0, 2.0, -50.0, 2.5])
    rng, n = SampleRng([0]), 100_000
    noise = rng.uniform([0], n)[0] if way is draw else rng.keys([0], n)[0]

    def shares(temperature=1.0, top_k=None, top_p=None):
        cut, heat = Cut(temperature, temperature, top_k, top_p), torch.full((n,), temperature)
        return way(logits.expand(n, -1), noise, heat, cut).bincount(minlength=5) / n

    def expected(kept, temperature=1.0):
        return (logits / temperature).masked_fill(~torch.tensor(kept), -torch.inf).softmax(0)

    everything = [True] * 5
    torch.testing.assert_close(shares(), expected(everything), atol=0.006, rtol=0)
    torch.testing.assert_close(shares(temperature=2.0), expected(everything, 2.0), atol=0.006, rtol=0)
    torch.testing.assert_close(shares(top_k=2), expected([False, True, False, False, True]), atol=0.006, rtol=0)
    # 0.474 and 0.287 are the two largest: 0.7 needs both, 0.77 the third as well
    torch.testing.assert_close(shares(top_p=0.7), expected([False, True, False, False, True]), atol=0.006, rtol=0)
    torch.testing.assert_close(shares(top_p=0.77), expected([False, True, True, False, True]), atol=0.006, rtol=0)
    assert shares(temperature=0.0).tolist() == shares(top_k=1).tolist() == shares(top_p=0.01).tolist() == [0, 1, 0, 0, 0]


def test_draw_never_takes_a_token_without_probability():
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf])
    edges = torch.tensor([0.0, 1e-30, 0.5, 1 - 2**-24])
    for cut in (Cut(1, 1, None, None), Cut(1, 1, 4, None), Cut(1, 1, None, 1.0)):
        assert set(draw(logits.expand(4, -1), edges, torch.ones(4), cut).tolist()) <= {1, 3}


def test_draw_stays_inside_the_kept_tokens_however_the_sum_rounds():
    logits = torch.randn(20_000, 50, generator=torch.Generator().manual_seed(0))
    logits[:, 40:] = -torch.inf
    drawn = draw(logits, torch.full((20_000,), 1 - 2**-24), torch.ones(20_000), Cut(1, 1, None, None))
    assert drawn.max() < 40


def test_draws_of_a_seed_do_not_depend_on_its_neighbours():
    rng, alone = SampleRng([5, 9, 5]), SampleRng([9])
    first = rng.uniform([0, 1, 2], 4, 2)
    assert first[0].equal(first[2]) and first[1:2].equal(alone.uniform([0], 4, 2))
    assert rng.uniform([1], 3).equal(alone.uniform([0], 3))


@pytest.mark.parametrize("seed", [1.7, 2**64, -(2**63) - 1, None, "3", torch.tensor(2.0), torch.tensor([1, 2])])
def test_what_is_no_seed_is_one_line(seed):
    with pytest.raises(UserError, match=r"seeds: .*; give ") as caught:
        SampleRng([0, seed])
    assert "\n" not in str(caught.value)


def test_a_seed_is_a_number_of_any_kind():
    numbers = SampleRng([3, np.int64(3), torch.tensor(3)]).uniform([0, 1, 2], 4)
    assert numbers[0].equal(numbers[1]) and numbers[0].equal(numbers[2])
    SampleRng([2**64 - 1, -(2**63)])


def test_every_row_has_its_own_temperature_and_zero_means_the_likeliest():
    generator = torch.Generator().manual_seed(0)
    logits, uniform = torch.randn(40, 9, generator=generator), torch.rand(40, generator=generator)
    heat = torch.tensor([0.0, 0.5, 1.0, 2.0]).repeat(10)
    together = draw(logits, uniform, heat, Cut(0.0, 2.0, None, 0.9))
    for value in (0.0, 0.5, 1.0, 2.0):
        rows = heat == value
        alone = draw(logits[rows], uniform[rows], heat[rows], Cut(value, value, None, 0.9))
        assert alone.equal(together[rows])
    assert together[::4].equal(logits[::4].argmax(1)) and not together.equal(logits.argmax(1))


def test_gumbel_noise_is_gumbel_and_of_each_key_and_code_its_own():
    noise = gumbel(SampleRng([0]).keys([0], 4000)[0], torch.arange(500)).double()
    assert noise.mean().item() == pytest.approx(0.5772156649, abs=0.005)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.01)
    for x in (-1.5, 0.0, 2.0, 5.0):
        assert (noise < x).double().mean().item() == pytest.approx(math.exp(-math.exp(-x)), abs=0.001)
    for lines in (noise[:60], noise[:, :60].T, torch.cat([noise[:30, 1:], noise[:30, :-1]])):
        correlation = torch.corrcoef(lines) - torch.eye(60)
        assert correlation.abs().max() < 6 / lines.shape[1] ** 0.5
    codes = torch.randperm(500)
    assert gumbel(torch.tensor([7, 9], dtype=torch.int32), codes).equal(
        gumbel(torch.tensor([7, 9], dtype=torch.int32), torch.arange(500))[:, codes]
    )


def test_noise_of_every_code_draws_a_large_vocabulary_evenly():
    k, n = 20_000, 4000
    drawn = draw_largest(torch.zeros(n, k), SampleRng([3]).keys([0], n)[0], torch.ones(n), Cut(1, 1, None, None))
    # as many different codes as so many draws have on average, k (1 - (1 - 1/k)^n), within four standard deviations
    assert len(drawn.unique()) == pytest.approx(k * (1 - (1 - 1 / k) ** n), abs=4 * 18)
    assert drawn.double().mean().item() == pytest.approx((k - 1) / 2, abs=4 * k / 12**0.5 / n**0.5)


@pytest.mark.parametrize("cut", [Cut(1, 1, None, None), Cut(1, 1, 20, None), Cut(1, 1, None, 0.9)])
def test_the_largest_sum_changes_less_often_than_the_logits_could_make_it(cut):
    generator = torch.Generator().manual_seed(0)
    logits, keys, n = torch.randn(1, 100, generator=generator).expand(20_000, -1), SampleRng([1]).keys([0], 20_000)[0], 20_000
    other = logits + 0.1 * (2 * torch.rand(1, 100, generator=generator) - 1)
    heat = torch.ones(n)
    same = (draw_largest(logits, keys, heat, cut) == draw_largest(other, keys, heat, cut)).double().mean().item()
    if cut.top_k is cut.top_p is None:
        assert same > math.exp(-0.2)
    uniform = torch.rand(n, generator=generator)
    assert same > (draw(logits, uniform, heat, cut) == draw(other, uniform, heat, cut)).double().mean().item()
