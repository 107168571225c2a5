"""Small real priors, and a toy distribution whose conditionals are known exactly."""

from __future__ import annotations

import itertools

import pytest
import torch

from stage2_prior.logits import TensorLogits
from stage2_prior.priors import build_prior

torch.set_num_threads(1)

SCALES = {"var": [[1, 1], [1, 3], [3, 4]]}  # sixteen tokens for every prior, in as many scales as it needs


def wake(prior, seed=0):
    """Opens the gates, which start at zero, so that every part of the network matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return prior


@pytest.fixture
def make_prior():
    """A tiny prior by name, its gates open; keyword arguments go to the constructor."""

    def make(name, awake=True, **options):
        torch.manual_seed(0)
        defaults = {
            "sizes": [11],
            "scales": SCALES.get(name, [[4, 4]]),
            "image_size": [16, 16],
            "num_classes": 5,
            "depth": 2,
            "width": 32,
            "heads": 2,
            "dropout": 0.0,
        }
        prior = build_prior(name, **(defaults | options))
        return (wake(prior) if awake else prior).eval()

    return make


@pytest.fixture
def causal():
    """Makes a CausalLogits of a MaskedLogits: all tokens from a place on are masked."""

    def of(masked_logits):
        def logits(tokens, start, m, branches):
            at = (torch.tensor(start)[:, None] + torch.arange(m)).flatten()[:, None]
            masked, last = torch.arange(tokens.shape[1]) >= at, tokens.shape[1] - 1
            rows = torch.arange(len(tokens)).repeat_interleave(m)
            return masked_logits(tokens[rows], masked, at.clamp(max=last), rows, branches)

        return logits

    return of


class ToyJoint:
    """A random joint distribution of 4 tokens with 3 values, on a grid of 2 x 2, and its exact conditionals."""

    scales, t, k = ((2, 2),), 4, 3

    def __init__(self):
        self.states = torch.tensor(list(itertools.product(range(self.k), repeat=self.t)))
        energies = torch.randn(len(self.states), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        self.probabilities = (2.0 * energies).softmax(0)
        self.calls = []

    def conditionals(self, tokens, masked):
        """log p(x_i = k | visible tokens): "r t k"."""
        fits = ((self.states[None] == tokens[:, None]) | masked[:, None]).all(-1)
        weights = torch.where(fits, self.probabilities, 0.0)
        one_hot = torch.nn.functional.one_hot(self.states, self.k).double()
        return torch.einsum("rs,stk->rtk", weights, one_hot).clamp_min(1e-300).log().log_softmax(-1)

    def masked_logits(self, tokens, masked, positions, rows, branches):
        self.calls.append((len(rows), branches))
        logits = self.conditionals(tokens[..., 0], masked)
        return TensorLogits([logits.gather(1, positions[..., None].expand(-1, -1, self.k)).repeat(len(branches), 1, 1)])

    def total_variation(self, tokens):
        """Distance between the samples' histogram and the distribution."""
        index = (tokens[..., 0] * self.k ** torch.arange(self.t - 1, -1, -1)).sum(1)
        return (index.bincount(minlength=len(self.states)) / len(index) - self.probabilities).abs().sum().item() / 2

    def floor(self, n):
        """The distance that n perfect samples have on average, and a generous upper limit of it."""
        generator = torch.Generator().manual_seed(1)
        draws = [self.probabilities.multinomial(n, replacement=True, generator=generator) for _ in range(50)]
        distances = torch.tensor([self.total_variation(self.states[draw][..., None]) for draw in draws])
        return (distances.mean() + 4 * distances.std()).item()


@pytest.fixture
def toy():
    return ToyJoint()
