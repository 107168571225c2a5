"""Cross-entropy of a linear head in memory that does not grow with vectors times codes.

A piece of the rows at a time: its logits become the loss and, while they are there, their part of the gradients, so
nothing is worked out twice and no n x k matrix exists. Exact, label smoothing included. (The same plan as Liger-Kernel's,
Hsu et al. 2024, arXiv 2410.10989; `torch.nn.functional.linear_cross_entropy` is one too, without label smoothing.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from stage2_prior.rows import ROWS

HELD = {"cpu": 1 << 24}  # logits held at once: 64 MB
HELD_ELSEWHERE = 1 << 27  # a GPU's products want more rows; not measured


def rows_at_once(logits: int, device: torch.device, share: int = 1) -> int:
    """Rows whose `logits` (numbers per row) take the share-th part of what may be held at once: a multiple of 16."""
    return max(HELD.get(device.type, HELD_ELSEWHERE) // (share * logits) // ROWS * ROWS, ROWS)


def linear_cross_entropy(
    features: Float[Tensor, "n c"],
    vectors: Float[Tensor, "k c"],
    bias: Float[Tensor, " k"],
    targets: Int[Tensor, " n"],
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Sum over the rows of the cross-entropy (nats) of logits <features, vectors> + bias: float32, or float64 of such inputs.

    Works in the type of autocast where that is bfloat16 (sums in float32), else in at least float32. Its gradients are
    made in the forward pass and given away once: a second backward pass through the same result raises RuntimeError.
    """
    return _LinearCrossEntropy.apply(features, vectors, bias, targets, label_smoothing)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def linear_nats(
    features: Float[Tensor, "n c"], vectors: Float[Tensor, "k c"], bias: Float[Tensor, " k"], targets: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Nats of each row, no smoothing, no gradient."""
    dtype = _working_type(features, vectors)
    with torch.autocast(features.device.type, enabled=False):
        parts = [nats for *_, nats in _pieces(features.to(dtype), vectors.to(dtype), bias, targets)]
    return torch.cat(parts) if parts else bias.new_zeros(0)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, vectors: Tensor, bias: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        dtype = _working_type(features, vectors)
        d_features, d_vectors, d_bias = (
            torch.zeros_like(each) if wanted else None
            for each, wanted in zip((features, vectors, bias), ctx.needs_input_grad, strict=False)
        )
        with torch.autocast(features.device.type, enabled=False):
            x, w = features.to(dtype), vectors.to(dtype)
            loss = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=x.device)
            for part, exponentials, total, nats in _pieces(x, w, bias, targets):
                loss += nats.sum()
                weights, share = exponentials.to(dtype), 1 / total  # probabilities are exponentials times their row's share
                if d_features is not None:
                    d_features[part] = (weights @ w) * share
                if d_vectors is not None:
                    _add_product(d_vectors, weights.T, (x[part] * share).to(dtype))
                if d_bias is not None:
                    d_bias += (exponentials.T @ share).squeeze(1)
            # CE with smoothing = CE + smoothing (<x, own vector - mean vector> + own bias - mean bias)
            mean, own = w.mean(0), w[targets]
            if smoothing:
                distance = (x * (own - mean)).sum(1, dtype=loss.dtype) + (bias[targets] - bias.mean())
                loss += smoothing * distance.sum()
            if d_features is not None:
                d_features -= (1 - smoothing) * own + smoothing * mean
            if d_vectors is not None:
                d_vectors.index_add_(0, targets, x.to(d_vectors.dtype), alpha=smoothing - 1)
                d_vectors -= smoothing / len(w) * x.sum(0)
            if d_bias is not None:
                d_bias.index_add_(0, targets, d_bias.new_full((len(x),), smoothing - 1))
                d_bias -= smoothing * len(x) / len(w)
        ctx.gradients = (d_features, d_vectors, d_bias)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("linear_cross_entropy: its gradients were given away by an earlier backward pass")
        gradients, ctx.gradients = ctx.gradients, None
        return *(each if each is None else each.mul_(gradient) for each in gradients), None, None


def _pieces(x: Tensor, w: Tensor, bias: Tensor, targets: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Piece by piece: its rows, exp(logits - largest) "r k" (valid until the next piece), their sums "r 1", nats "r"."""
    rows = min(rows_at_once(len(w), x.device), len(x))
    buffer = torch.empty(rows, len(w), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    for start in range(0, len(x), max(rows, 1)):
        part = slice(start, start + rows)
        logits = buffer[: len(x[part])]
        if x.dtype == buffer.dtype:
            torch.addmm(bias, x[part], w.T, out=logits)
        else:
            logits.copy_(x[part] @ w.T).add_(bias)
        own = logits.gather(1, targets[part, None])
        largest = logits.amax(1, keepdim=True)
        total = logits.sub_(largest).exp_().sum(1, keepdim=True)
        yield part, logits, total, (largest + total.log() - own).squeeze(1)


def _add_product(into: Tensor, a: Tensor, b: Tensor) -> None:
    if into.dtype == a.dtype:
        into.addmm_(a, b)
    else:
        into += a @ b


def _working_type(features: Tensor, vectors: Tensor) -> torch.dtype:
    """float16 would lose the probabilities below 6e-8, most of them in a large codebook, so it is not used."""
    device = features.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else vectors.dtype
    return dtype if dtype == torch.bfloat16 else torch.promote_types(dtype, torch.float32)
