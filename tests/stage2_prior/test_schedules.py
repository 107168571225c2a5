"""Counts are exact for every schedule, number of tokens and number of steps."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from stage2_prior.sampling import ARSampling, MaskGITSampling
from stage2_prior.schedules import GUIDANCE_SCHEDULES, MASK_SCHEDULES, mask_counts, reveal_counts


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
def test_schedules_fall_from_one_to_zero(schedule):
    shares = MASK_SCHEDULES[schedule](torch.linspace(0, 1, 101, dtype=torch.float64))
    assert abs(shares[0] - 1) < 1e-12 and abs(shares[-1]) < 1e-12
    assert (shares.diff() < 0).all()


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 12, 64, 100])
def test_every_step_reveals_and_together_they_reveal_all(schedule, steps):
    for unknown in (0, 1, 2, 5, 16, 64, 256):
        counts = reveal_counts(unknown, steps, schedule)
        assert len(counts) == min(steps, unknown)
        assert sum(counts) == unknown
        assert min(counts, default=1) >= 1
        if steps >= unknown:
            assert counts == (1,) * unknown


def test_reveal_counts_are_those_of_the_literature():
    assert reveal_counts(256, 8, "cosine") == (5, 15, 24, 31, 39, 45, 48, 49)
    assert reveal_counts(256, 8, "arccos") == (21, 21, 21, 23, 25, 28, 35, 82)
    assert reveal_counts(256, 8, "linear") == (32,) * 8


# F(m) = P(masked share <= m) for a uniform argument
CUMULATIVE = {
    "arccos": lambda m: 1 - torch.cos(torch.as_tensor(m) * math.pi / 2),
    "cosine": lambda m: torch.asin(torch.as_tensor(m)) * 2 / math.pi,
    "linear": lambda m: torch.as_tensor(m),
}


@pytest.mark.parametrize("schedule", CUMULATIVE)
def test_masked_share_is_distributed_as_the_schedule_says(schedule, make_prior):
    prior = make_prior("maskgit", schedule=schedule)
    noise = prior.draw_noise(4000, torch.Generator().manual_seed(0))
    assert noise["count"].equal(mask_counts(noise["level"], 16, schedule))
    shares = mask_counts(noise["level"], 10**6, schedule) / 10**6  # fine enough to be compared with a continuous law
    assert stats.kstest(shares.numpy(), lambda m: CUMULATIVE[schedule](m).numpy()).statistic < 0.002  # stratified
    assert abs(shares.mean().item() - (0.5 if schedule == "linear" else 2 / math.pi)) < 0.001


def test_at_least_one_and_at_most_all_are_masked():
    edges = torch.tensor([0.0, 1e-9, 1 - 2**-24, 1.0])
    for schedule in MASK_SCHEDULES:
        counts = mask_counts(edges, 9, schedule)
        assert counts[0] == 9 and counts[-2:].tolist() == [1, 1]
    assert mask_counts(torch.tensor([0.3, 0.4, 0.9]), 9, "linear").tolist() == [7, 6, 1]  # 6.3, 5.4, 0.9 rounded up


def test_guidance_schedules_reach_the_scale_and_keep_to_their_interval():
    constant = MaskGITSampling(guidance_scale=3.0)
    assert {constant.scale(done, done) for done in (0.0, 0.4, 0.99)} == {3.0}
    linear = MaskGITSampling(guidance_scale=3.0, guidance_schedule="linear")
    assert [linear.scale(0.3, revealed) for revealed in (0.0, 0.5, 1.0)] == [1.0, 2.0, 3.0]
    cosine = MaskGITSampling(guidance_scale=3.0, guidance_schedule="power_cosine", guidance_power=2.0)
    assert cosine.scale(0.0, 0.5) == 1.0
    assert cosine.scale(0.5, 0.0) == pytest.approx(2 - math.cos(math.pi / 4))  # 1 + 2 (1 - cos(pi / 4)) / 2
    for schedule in GUIDANCE_SCHEDULES:
        for scale in (0.0, 0.5, 1.0):
            assert MaskGITSampling(guidance_scale=scale, guidance_schedule=schedule).scale(0.3, 0.6) == scale
    interval = MaskGITSampling(guidance_scale=3.0, guidance_interval=(0.25, 0.5))
    assert [interval.scale(done, 0.0) for done in (0.0, 0.25, 0.49, 0.5)] == [1.0, 3.0, 3.0, 1.0]


def test_temperatures_move_in_equal_steps_from_the_first_to_the_last():
    constant, falling = MaskGITSampling(temperature=0.8), ARSampling(temperature=1.3, final_temperature=0.5)
    assert [constant.temperature_at(step, 5) for step in range(5)] == [0.8] * 5
    assert [falling.temperature_at(step, 5) for step in range(6)] == pytest.approx([1.3, 1.1, 0.9, 0.7, 0.5, 0.5])
    assert falling.temperature_at(0, 1) == 1.3
    assert (falling.cut.coldest, falling.cut.hottest) == (0.5, 1.3) and constant.cut.coldest == constant.cut.hottest == 0.8
