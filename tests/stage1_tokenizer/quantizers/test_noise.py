"""Noise that belongs to a vector: its distributions, and what it is a function of."""

import pytest
import torch
from scipy import stats

from stage1_tokenizer.quantizers.noise import Noise


@pytest.fixture
def noise():
    torch.manual_seed(0)
    return Noise()


def test_the_distributions(noise):
    like = torch.empty(200, 50, dtype=torch.float64)
    assert stats.kstest(noise.uniform(like).flatten(), "uniform").pvalue > 0.01
    assert stats.kstest(noise.gumbel(like).flatten(), "gumbel_r").pvalue > 0.01
    assert stats.kstest(noise.normal(like).flatten(), "norm").pvalue > 0.01


def test_rows_columns_draws_and_keys_are_independent(noise):
    like = torch.empty(400, 20, dtype=torch.float64)
    draws = torch.cat([noise.normal(like), noise.normal(like), Noise().normal(like)], 1)
    off = draws.T.corrcoef() - torch.eye(60)
    assert off.abs().max() < 5 / 400**0.5
    rows = draws[:60].corrcoef() - torch.eye(60)
    assert rows.abs().max() < 5 / 60**0.5


def test_parts_of_a_batch_are_the_batch_and_loading_goes_on(noise):
    torch.manual_seed(0)
    again = Noise()
    like = torch.empty(10, 3)
    whole = noise.gumbel(like)
    assert torch.equal(torch.cat([again.gumbel(like[:4]), again.gumbel(like[4:])]), whole)
    loaded = Noise()
    loaded.load_state_dict(noise.state_dict())
    after = loaded.gumbel(like)
    assert torch.equal(after, noise.gumbel(like))
    assert not torch.isin(after, whole).any()


def test_no_number_is_infinite(noise):
    values = noise.uniform(torch.empty(1 << 12, 1 << 9))
    assert 0 < values.min() < 1e-5
    assert 1 - 1e-5 < values.max() < 1
    extremes = torch.tensor([2.0**-24, 1 - 2.0**-24])
    assert (-(-extremes.log()).log()).isfinite().all()
    assert torch.erfinv(2 * extremes - 1).isfinite().all()
