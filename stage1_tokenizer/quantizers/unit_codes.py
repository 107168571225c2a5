"""What quantizers with a constant codebook of unit vectors share."""

from abc import abstractmethod

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from stage1_tokenizer.quantizers.estimators import on_sphere, straight_through
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes


class UnitCodes(Quantizer):
    """q = the code of the largest cosine with z; straight-through to z / |z|; no losses, no parameters, no training.

    The search goes over the codebook in tiles (`nearest_codes`), its memory does not grow with its size.
    """

    @property
    @abstractmethod
    def directions(self) -> Float[Tensor, "k c"]:
        """The codes, all of one length."""

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        unit = on_sphere(z)
        index = nearest_codes(unit, self.directions)[:, None]
        return QuantizerOutput(straight_through(unit, self.dequantize(index)), index, {})

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.normalize(F.embedding(indices[:, 0], self.directions), dim=1)
