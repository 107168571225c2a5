"""Schedules, randomness and means: what hangs on the one clock, images seen."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from pipeline.core.rng import derive_seed, generator
from pipeline.core.running_means import RunningMeans
from pipeline.core.schedule import cosine_with_warmup, crossed, set_learning_rate


@pytest.mark.parametrize("seen, factor", [(0, 0.0), (5, 0.5), (10, 1.0), (60, 0.55), (110, 0.1), (500, 0.1)])
def test_the_rate_rises_and_falls(seen, factor):
    assert cosine_with_warmup(seen, warmup=10, total=110, final=0.1) == pytest.approx(factor)


def test_no_warmup_and_all_of_it():
    assert cosine_with_warmup(0, warmup=0, total=10, final=0) == 1
    assert cosine_with_warmup(10, warmup=10, total=10, final=0.3) == 1


def test_every_group_gets_the_rate():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": [model.weight]}, {"params": [model.bias], "lr": 5}], lr=1)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_intervals_are_crossed_once_whatever_the_batch_size():
    for batch in (1, 7, 30, 250):
        moments = range(0, 1000, batch)
        expected = len({(before + batch) // 100 for before in moments} - {0})
        assert sum(crossed(before, before + batch, 100) for before in moments) == expected
    assert crossed(99, 100, 100) and not crossed(100, 101, 100) and not crossed(0, 1000, 0)


def test_seeds_are_functions_of_their_names():
    assert derive_seed(1, "step", 23) == derive_seed(1, "step", 23) < 2**63
    names = [(1, 23), (12, 3), (1, 2, 3), ("1", "2", "3x"), (123,), ("a", 1), ("a", -1)]
    assert len({derive_seed(*name) for name in names}) == len(names)
    assert torch.rand(3, generator=generator(1, "x")).equal(torch.rand(3, generator=generator(1, "x")))


def test_means_are_of_the_steps_that_have_a_value():
    accelerator = Accelerator(cpu=True)
    means = RunningMeans()
    assert means.take(accelerator) == {}
    good, bad = torch.tensor(True), torch.tensor(False)
    means.add({"a": torch.tensor(1.0)}, good)
    means.add({"a": torch.tensor(2.0), "b": torch.tensor(5.0, requires_grad=True)}, good)
    means.add({"a": torch.tensor(torch.nan), "b": torch.tensor(7.0)}, bad)
    means.add({"c": torch.tensor(torch.inf)}, bad)
    again = RunningMeans()
    again.load_state_dict(means.state_dict(accelerator), accelerator.device)
    for kept in (means, again):
        kept.add({"a": torch.tensor(6.0)}, good)
        assert kept.take(accelerator) == {"a": 3.0, "b": 5.0}
        assert kept.take(accelerator) == {}
