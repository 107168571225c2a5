"""What quantizers share whose codes are the outputs of a trained network on a table of its own."""

from abc import abstractmethod

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.distortion import codebook_and_commitment
from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes


class MappedCodebook(Quantizer):
    """q = e_{k*}, e the rows of `book()`, with the gradient and the losses of `vq`: one chosen code moves all.

    Codes are made from the whole table together, so `dequantize` makes them all too: of the chosen rows alone a network
    that mixes rows would make others (as the public TransVQ code does).
    """

    commitment_weight: float

    @abstractmethod
    def book(self) -> Float[Tensor, "k c"]:
        """All codes, in full precision."""

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        book = self.book()
        index = nearest_codes(z, book)
        codes = F.embedding(index, book)
        losses = codebook_and_commitment(z, codes, self.commitment_weight) if self.training else {}
        return QuantizerOutput(straight_through(z, codes), index[:, None], losses)

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.embedding(indices[:, 0], self.book())


class Block(nn.Module):
    """A pre-norm transformer block over the rows of a table; attention is linear (elu + 1 features) or softmax."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, linear: bool) -> None:
        super().__init__()
        self.heads = heads
        self.attend = linear_attention if linear else F.scaled_dot_product_attention
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.from_heads = nn.Linear(width, width, bias=False)
        hidden = int(mlp_ratio * width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Float[Tensor, "m w"]) -> Float[Tensor, "m w"]:
        q, k, v = self.to_qkv(self.norm(x)).unflatten(1, (3, self.heads, -1)).permute(1, 2, 0, 3).unbind()
        x = x + self.from_heads(self.attend(q, k, v).transpose(0, 1).flatten(1))
        return x + self.mlp(x)


def linear_attention(
    q: Float[Tensor, "h m w"], k: Float[Tensor, "h m w"], v: Float[Tensor, "h m w"]
) -> Float[Tensor, "h m w"]:
    """phi(q) (phi(k)^T v) / phi(q) sum phi(k), phi = elu + 1: time and memory grow with m, not with m^2."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return q @ (k.transpose(1, 2) @ v) / (q @ k.sum(1)[..., None] + 1e-6)
