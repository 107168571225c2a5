"""Per-sample arithmetic: matrix products and dropout whose result for one sample does not depend on the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

# On a CPU matrix libraries take other kernels, which differ in the last bit, for a ragged number of rows and, where the
# inputs are many, for few rows. Found by trial with MKL on AVX-512, one and two threads; no library promises it.
ROWS = 16
INPUTS = 768


def linear(
    x: Float[Tensor, "*b i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*b o"]:
    """F.linear over rows filled up to a multiple of 16 and inputs in parts, so that a row's value is the same in any batch."""
    flat = x.reshape(-1, x.shape[-1])
    rows = len(flat)
    if rows % ROWS:
        flat = F.pad(flat, (0, 0, 0, -rows % ROWS))
    step = INPUTS if x.device.type == "cpu" else x.shape[-1]
    out = F.linear(flat[:, :step], weight[:, :step], bias)
    for start in range(step, x.shape[-1], step):
        part = slice(start, start + step)
        out = torch.addmm(out, flat[:, part], weight[:, part].T)
    return out[:rows].view(*x.shape[:-1], weight.shape[0])


class Linear(nn.Linear):
    """A linear layer without bias, rows independent of the batch size, weights of variance 1 / inputs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        nn.init.normal_(self.weight, std=inputs**-0.5)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        return linear(x, self.weight)


def mix(x: Int[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """A bijective hash of int32 (lowbias32, Wellons 2018)."""
    x = (x ^ (x >> 16 & 0xFFFF)) * 0x7FEB352D
    x = (x ^ (x >> 15 & 0x1FFFF)) * (0x846CA68B - 2**32)
    return x ^ (x >> 16 & 0xFFFF)


def dropout(x: Float[Tensor, "b *f"], rate: float, seeds: Int[Tensor, " b"], salt: int) -> Float[Tensor, "b *f"]:
    """Dropout whose mask is a function of the sample's seed, the place in the network (`salt`) and the element.

    No generator is involved, so any split of the batch over processes or accumulation steps gives the same masks.
    """
    counter = mix(torch.arange(x[0].numel(), device=x.device, dtype=torch.int32))
    keys = mix(mix(seeds.to(torch.int32)) + mix(torch.full_like(seeds, salt, dtype=torch.int32)))
    uniform = mix(counter + keys[:, None]) & 0x7FFFFFFF
    keep = (uniform >= int(rate * 2**31)).view(x.shape)
    return x * keep * (1 / (1 - rate))
