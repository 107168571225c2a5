"""A linear classifier on frozen features: does a generated image look like the class that was asked for?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

PENALTY = 1e-2  # times the mean squared weight norm; chosen on real validation crops, where 1e-3 and 1e-1 score lower
STEPS = 40


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on standardised features."""

    mean: Float[Tensor, "f"]
    deviation: Float[Tensor, "f"]
    weight: Float[Tensor, "k f"]
    bias: Float[Tensor, "k"]

    def predict(self, features: Float[Tensor, "n f"]) -> Int[Tensor, "n"]:
        """The most probable label of every image."""
        return F.linear((features - self.mean) / self.deviation, self.weight, self.bias).argmax(1)


def fit_probe(features: Float[Tensor, "n f"], labels: Int[Tensor, "n"], classes: int) -> LinearProbe:
    """Fit the probe to real images: cross-entropy plus a squared penalty on the weights, minimised by L-BFGS."""
    center, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
    inputs = (features - center) / deviation
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(inputs, weight, bias), labels) + PENALTY / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return LinearProbe(center, deviation, weight.detach(), bias.detach())
