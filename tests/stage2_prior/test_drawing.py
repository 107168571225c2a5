"""Drawing a token: the right distribution, to its edges; draws that belong to a seed."""

from __future__ import annotations

import torch

from stage2_prior.drawing import Cut, SampleRng, draw


def test_draw_follows_temperature_top_k_and_top_p():
    logits = torch.tensor([1.0, 3.0, 2.0, -50.0, 2.5])
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(0))

    def shares(temperature=1.0, top_k=None, top_p=None):
        cut, heat = Cut(temperature, temperature, top_k, top_p), torch.full_like(uniform, temperature)
        drawn = draw(logits.expand(len(uniform), -1), uniform, heat, cut)
        return drawn.bincount(minlength=5) / len(uniform)

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
