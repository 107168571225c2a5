"""Soft assignment written out, with all of p: the oracle of the others, and the fastest where n * k is small."""

import torch
from torch import Tensor

from stage1_tokenizer.quantizers.nearest import squared_distances
from stage1_tokenizer.quantizers.precision import full_precision


def assign(
    z: Tensor,
    codebook: Tensor,
    weights: Tensor,
    prior: Tensor | None,
    values: Tensor | None,
    collected: Tensor,
    distance: bool,
) -> tuple[Tensor, ...]:
    """What `soft_assign` gives; memory and gradients are autograd's."""
    with full_precision(z.device):
        logits = weights * (-squared_distances(z, codebook) if distance else z @ codebook.T)
        logits = logits if prior is None else logits + prior
        p = logits.softmax(1)
        return (
            p @ (codebook if values is None else values),
            logits.argmax(1),
            p.square().sum(1),
            p.mean(0),
            logits.logsumexp(1),
            p.detach().T @ collected,
            torch.zeros_like(weights.flatten()[:1]).squeeze(0),
        )
