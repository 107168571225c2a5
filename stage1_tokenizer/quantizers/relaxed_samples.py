"""Gumbel-softmax samples of codes (Jang et al. 2016, arXiv 1611.01144), some vectors at a time."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stage1_tokenizer.quantizers.noise import Noise
from stage1_tokenizer.quantizers.precision import full_precision

AT_ONCE = 1 << 22  # logits held at a time


def relaxed_sample(
    z: Float[Tensor, "n c"],
    logits: Callable[[Float[Tensor, "m c"]], Float[Tensor, "m k"]],
    values: Float[Tensor, "k v"],
    temperature: float | Float[Tensor, ""],
    noise: Noise,
) -> tuple[Float[Tensor, "n v"], Int[Tensor, " n"]]:
    """o values for o = softmax_k((l_ik + g_ik) / T), and the sample argmax_k (l_ik + g_ik), where g is Gumbel noise.

    Logits and noise are made again in the backward pass, so nothing of n times k is held. It is not `soft_assign` that does
    this: the noise, a hash of vector and code, costs far more than the product it is added to, and leaves no code out.
    """

    def sample(part: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        with full_precision(part.device):
            noisy = logits(part)
            noisy = noisy + noise.gumbel(noisy, rows)
            return (noisy / temperature).softmax(1) @ values, noisy.argmax(1)

    size = max(1, AT_ONCE // len(values))
    parts = zip(z.split(size), noise.rows(len(z)).split(size), strict=True)
    sampled = [checkpoint(sample, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    codes, index = (torch.cat(fields) for fields in zip(*sampled, strict=True))
    return codes, index
