"""The average of the weights that training keeps (diffusers' EMAModel, set up as stage2_prior/training.py does), by hand."""

from __future__ import annotations

import torch
from diffusers.training_utils import EMAModel


def test_the_average_is_the_formula_with_its_warm_up():
    decay, parameter = 0.9, torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    ema = EMAModel([parameter], decay=decay)
    expected = parameter.detach().clone().double()
    for step in range(1, 100):
        with torch.no_grad():
            parameter += torch.tensor([0.5, 0.25]) * (-1) ** step
        ema.step([parameter])
        # the first step replaces the fresh weights, then (1 + s) / (10 + s) rises up to the decay that is asked for
        share = 0.0 if step == 1 else min(decay, step / (9 + step))
        expected = share * expected + (1 - share) * parameter.detach().double()
        torch.testing.assert_close(ema.shadow_params[0].double(), expected, rtol=1e-5, atol=1e-6)
    assert ema.cur_decay_value == decay
