"""Per-sample arithmetic: matrix products and dropout whose result for one sample does not depend on the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

# On a CPU matrix libraries take other kernels, which differ in the last bit, for a ragged number of rows and, where the
# inputs are many, for few rows. Found by trial, one and two threads (MKL; oneDNN for bfloat16); no library promises it.
ROWS, CPU_ROWS = 16, 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 64
INPUTS, HALF_INPUTS = 768, 256
PACKED_FOR = 16  # rows, when oneDNN lays a weight out


def linear(
    x: Float[Tensor, "*b i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*b o"]:
    """F.linear over rows filled up to a multiple of so many and inputs in parts, so that a row is the same in any batch."""
    flat = x.reshape(-1, x.shape[-1])
    rows, multiple, step = len(flat), ROWS, x.shape[-1]
    if x.device.type == "cpu":
        multiple = CPU_ROWS
        half = x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled("cpu")
        step = HALF_INPUTS if half else INPUTS
    if rows % multiple:
        flat = F.pad(flat, (0, 0, 0, -rows % multiple))
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


class RowMap:
    """`linear` with one weight, many times: on a CPU that has oneDNN the weight is laid out for it once, which costs a copy.

    Then few rows need no filling up: oneDNN's kernels add up the inputs of a row in the same order whatever the number of rows,
    as long as the inputs are not many. Found by trial, as above.
    """

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None, packed: bool = True) -> None:
        self.weight, self.bias = weight, bias
        ready = weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
        self.parts = []
        if packed and ready and not torch.is_autocast_enabled("cpu"):
            parts = weight.detach().split(INPUTS, dim=1)
            self.parts = [torch.ops.mkldnn._reorder_linear_weight(part, PACKED_FOR) for part in parts]

    def __call__(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        if not self.parts:
            return linear(x, self.weight, self.bias)
        first, *others = zip(x.split(INPUTS, dim=-1), self.parts, strict=True)
        out = torch.ops.mkldnn._linear_pointwise(*first, self.bias, "none", [], "")
        for part, weight in others:
            out += torch.ops.mkldnn._linear_pointwise(part, weight, None, "none", [], "")
        return out


def first_marked(where: Bool[Tensor, "b t"]) -> list[int]:
    """The number of each row's first marked place, t where there is none."""
    return torch.where(where.any(1), where.int().argmax(1), where.shape[1]).tolist()


def mix(x: Int[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """A bijective hash of int32 (lowbias32, Wellons 2018)."""
    x = (x ^ (x >> 16 & 0xFFFF)) * 0x7FEB352D
    x = (x ^ (x >> 15 & 0x1FFFF)) * (0x846CA68B - 2**32)
    return x ^ (x >> 16 & 0xFFFF)


def dropout_keys(seeds: Int[Tensor, " b"], count: int) -> Int[Tensor, "s b"]:
    """What `dropout` makes its masks from at so many places of the network, for samples with these seeds."""
    places = mix(torch.arange(count, dtype=torch.int32, device=seeds.device))
    return mix(mix(seeds.to(torch.int32)) + places[:, None])


def dropout(x: Float[Tensor, "b *f"], rate: float, keys: Int[Tensor, " b"]) -> Float[Tensor, "b *f"]:
    """Dropout whose mask is a function of the sample's key and the element.

    No generator is involved, so any split of the batch over processes or accumulation steps gives the same masks.
    """
    counter = mix(torch.arange(x[0].numel(), device=x.device, dtype=torch.int32))
    uniform = mix(counter + keys[:, None]) & 0x7FFFFFFF
    keep = (uniform >= int(rate * 2**31)).view(x.shape)
    return x * keep * (1 / (1 - rate))
