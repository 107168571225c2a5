"""Loss terms on how vectors share the codes. u_k: mean share of code k; S_i = sum_k p_ik^2: purity of vector i."""

import torch
from jaxtyping import Float
from torch import Tensor


def peak_penalty(purity: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """mean_i relu(1 - S_i): 0 for one-hot assignments, 1 - 1/K for uniform ones (LGQ's L_peak)."""
    return (1 - purity).relu().mean()


def usage_penalty(usage: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    """K sum_k u_k^2: 1 when all codes are used alike, K when one takes all (LGQ's L_bins)."""
    return len(usage) * usage.square().sum()


def unbiased_usage_penalty(
    usage: Float[Tensor, " k"], mean_purity: Float[Tensor, ""], vectors: int
) -> Float[Tensor, ""]:
    """K times the mean of <p_i, p_j> over pairs i != j: the U-statistic of `usage_penalty`.

    The plain penalty also holds every vector's product with itself, (K/N) mean S: with fewer vectors than codes that
    dominates, and punishes peaked assignments. A single vector has no pair: then 0.
    """
    pairs = vectors * usage.square().sum() - mean_purity
    return len(usage) * pairs / max(vectors - 1, 1)


def entropy(shares: Float[Tensor, "... k"]) -> Float[Tensor, "..."]:
    """-sum_k u_k log u_k, in nats, between 0 and log K."""
    # the logarithm of a share that underflowed to 0 would make the gradient nan
    return (-shares * shares.clamp_min(torch.finfo(shares.dtype).tiny).log()).sum(-1)


def perplexity(usage: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    """exp of the entropy: the number of codes in use, between 1 and K."""
    return entropy(usage).exp()
