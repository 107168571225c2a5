"""Soft assignment of vectors to codes, p_ik = softmax_k of the logits, in the few statistics that methods need of it."""

import os
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from stage1_tokenizer.quantizers.assignment import dense, streaming
from stage1_tokenizer.quantizers.assignment.scores import Scores
from stage1_tokenizer.quantizers.assignment.search import search
from stage1_tokenizer.quantizers.options import one_of
from stage1_tokenizer.quantizers.precision import full_precision

SIMILARITIES = ("squared_distance", "cosine", "dot")
BACKENDS, INTERPRETED = {"dense": dense.assign, "streaming": streaming.assign}, False
if find_spec("triton"):  # it comes with PyTorch, but not for every platform
    from stage1_tokenizer.quantizers.assignment import fused

    BACKENDS["triton"], INTERPRETED = fused.assign, fused.kernels.INTERPRETED
SMALL = 1 << 18  # entries of p: a dense one of so many stays in the cache, and tiles would cost more than they save
MOST_CHANNELS = 256  # of the kernels, which hold all channels of a block
CHOSEN = os.environ.get("LGQ_ASSIGNMENT") or "auto"  # what "auto" is: one backend, whatever the sizes and the device


@dataclass(frozen=True)
class SoftAssignment:
    """No field is of size n * k. `codes`, `purity`, `usage` and `log_partition` carry gradient."""

    codes: Float[Tensor, "n v"]  # sum_k p_ik c_k, or of the values
    index: Int[Tensor, " n"]  # argmax_k of the logits, the lowest on ties
    purity: Float[Tensor, " n"]  # S_i = sum_k p_ik^2, between 1/k and 1
    usage: Float[Tensor, " k"]  # u_k = mean_i p_ik
    log_partition: Float[Tensor, " n"]  # log sum_k exp(logit_ik)
    sums: Float[Tensor, "k r"]  # sum_i p_ik collected_i: with the usage, what an EM step needs
    skipped: Float[Tensor, ""]  # the share of all p_ik that together weigh less than rounding, and were not computed


def soft_assign(
    z: Float[Tensor, "n c"],
    codebook: Float[Tensor, "k c"],
    temperature: float | Float[Tensor, ""],
    similarity: str = "squared_distance",
    widths: Float[Tensor, " k"] | None = None,
    values: Float[Tensor, "k v"] | None = None,
    prior: Float[Tensor, " k"] | None = None,
    collected: Float[Tensor, "n r"] | None = None,
    backend: str = "auto",
) -> SoftAssignment:
    """Assign with logits -|z - c_k|^2 / (temperature * width_k), or cos(z, c_k) or z.c_k in place of -|z - c_k|^2.

    values: take the codes' place in the mean sum_k p_ik c_k (the codes without gradient, say), not in the logits.
    prior: added to the logits; log probabilities of the codes, but for a constant.
    collected: vectors to be summed by code in `sums`, which is empty without them; they get no gradient.
    backend: "dense", all of p in memory, the oracle; "streaming", in tiles that are computed again in the backward pass, the
        codes that weigh nothing left out: memory grows with n + k; "triton", the same fused, for GPUs; "auto", the fastest,
        or what the environment's LGQ_ASSIGNMENT says.

    The usage is that of these vectors: `global_batch.global_mean` of it is that of all processes', with exact gradient.
    Gradient flows to z, codebook, temperature, widths, values and prior, once: none of gradients, but for "dense". ValueError
    for an unknown similarity or backend, a temperature that is not above 0, or other numbers than float32 and float64.
    """
    one_of("soft_assign.similarity", similarity, SIMILARITIES)
    backend = CHOSEN if backend == "auto" else backend
    require_backend("soft_assign.backend", backend, z.device)
    if z.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"soft_assign.z: {z.dtype}; logits cancel, so give float32 or float64")
    if codebook.dtype != z.dtype:
        raise ValueError(f"soft_assign.codebook: {codebook.dtype}; give {z.dtype}, as z is")
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"soft_assign.temperature: {temperature}; give one above 0")
    values = codebook if values is None and similarity == "cosine" else values
    collected = z[:, :0] if collected is None else collected.detach()
    with torch.autocast(z.device.type, enabled=False):
        weights = torch.as_tensor(1 / (temperature if widths is None else temperature * widths), dtype=z.dtype, device=z.device)
        if similarity == "cosine":
            z, codebook = F.normalize(z, dim=1), F.normalize(codebook, dim=1)
        backend = _fastest(z, codebook, values) if backend == "auto" else backend
        distance = similarity == "squared_distance"
        return SoftAssignment(*BACKENDS[backend](z, codebook, weights, prior, values, collected, distance))


def require_chosen(device: torch.device) -> None:
    """ValueError for an LGQ_ASSIGNMENT that is no backend, or none of this device."""
    require_backend("LGQ_ASSIGNMENT", CHOSEN, device)


def require_backend(place: str, backend: str, device: torch.device) -> None:
    """ValueError with the place for an unknown backend, or one that this device has not, but in Triton's interpreter."""
    one_of(place, backend, ("auto", *BACKENDS))
    if backend == "triton" and device.type == "cpu" and not INTERPRETED:
        raise ValueError(f"{place}: 'triton' is for GPUs, and this is a CPU; give 'streaming' or 'dense'")


@torch.no_grad()
def log_partition(
    z: Float[Tensor, "n c"],
    codebook: Float[Tensor, "k c"],
    temperature: float | Float[Tensor, ""],
    prior: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, " n"]:
    """log sum_k exp(prior_k - |z - c_k|^2 / temperature) alone, without gradient: half the work, tile by tile."""
    with full_precision(z.device):
        weights = torch.as_tensor(1 / temperature, dtype=z.dtype, device=z.device)
        scores = Scores.of(z, codebook, weights, prior, True)
        return search(scores, listing=False).shift.sum(1) + scores.row


def _fastest(z: Tensor, codebook: Tensor, values: Tensor | None) -> str:
    channels = max(z.shape[1], 0 if values is None else values.shape[1])
    if z.is_cuda and z.dtype == torch.float32 and channels <= MOST_CHANNELS and "triton" in BACKENDS:
        return "triton"
    return "dense" if len(z) * len(codebook) <= SMALL else "streaming"
