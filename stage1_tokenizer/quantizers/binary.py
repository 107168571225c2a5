"""What quantizers of signs share: bits as indices, and the entropy loss over the patterns of the bits."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stage1_tokenizer.quantizers.information import negative_information_of_bits
from stage1_tokenizer.quantizers.mixed_radix import pack, radices, unpack
from stage1_tokenizer.quantizers.schedules import linear

MOST_BITS = 18  # per index: a distribution over 2^18 codes still fits everywhere


class Signs(nn.Module):
    """+-magnitude per channel as indices of `group_bits` bits each; of an index the first channel is the lowest bit."""

    radix: Tensor
    magnitude: Tensor

    def __init__(self, bits: int, magnitude: float, group_bits: int | None) -> None:
        super().__init__()
        if bits < 1:
            raise ValueError(f"quantizer.bits: {bits}; at least 1")
        if group_bits is None:
            group_bits = max(size for size in range(1, MOST_BITS + 1) if bits % size == 0)
        if not 1 <= group_bits <= MOST_BITS or bits % group_bits:
            raise ValueError(f"quantizer.group_bits: {group_bits}; it must divide bits = {bits}, and be at most {MOST_BITS}")
        self.group_bits = group_bits
        self.sizes = (2**group_bits,) * (bits // group_bits)
        self.register_buffer("radix", radices([2] * group_bits), persistent=False)
        self.register_buffer("magnitude", torch.tensor(magnitude), persistent=False)

    def indices(self, positive: Bool[Tensor, "n c"]) -> Int[Tensor, "n d"]:
        return pack(positive.reshape(-1, self.group_bits).long(), self.radix).view(len(positive), -1)

    def codes(self, indices: Int[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        bits = unpack(indices.reshape(-1, 1), self.radix, torch.full_like(self.radix, 2))
        return (2 * bits - 1).view(len(indices), -1) * self.magnitude


class EntropyLoss(nn.Module):
    """weight (mean H(p_i) - H(mean p)), three times that at progress 0 and falling to it over the first `ramp` of training.

    The public codes ramp over 2000 steps, of many hundred thousand: as a share of training, `ramp` is INFERRED.
    """

    boost: Tensor

    def __init__(self, weight: float, ramp: float, group_bits: int) -> None:
        super().__init__()
        self.weight = weight
        self.ramp = ramp
        self.group_bits = group_bits
        self.register_buffer("boost", torch.tensor(3.0))

    def forward(self, logits: Float[Tensor, "n b"]) -> Float[Tensor, ""]:
        return self.boost * self.weight * negative_information_of_bits(logits, self.group_bits)

    def anneal(self, progress: float) -> None:
        self.boost.fill_(linear(3.0, 1.0, min(1.0, progress / self.ramp)))
