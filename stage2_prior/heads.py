"""How tokens go into the trunk and how its features become logits: a table of heads.

`tied` learns a vector per code. `codebook` and `geometric` take the tokenizer's own code vectors, fixed, of c channels
where a table has as many as the trunk: at K = 262,144 and c = 16 they learn K biases and two small maps, and their
logits cost c / width of the tied ones. What they give up is rank: the logits of a position, beside the biases, are linear
in c numbers. With a tokenizer of bits (lfq, bsq) the code vectors are the bits, as MaskBit embeds them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.core.config import did_you_mean
from pipeline.core.errors import UserError
from stage2_prior.cross_entropy import linear_cross_entropy, linear_nats
from stage2_prior.logits import Logits
from stage2_prior.rows import Linear, RowMap

EMBEDDED = 0.02  # standard deviation of a fresh embedding, that of the trunk's positions and classes
EPS = 1e-6
FRESH = 0.25  # standard deviation of fresh logits


class Chain(nn.Module):
    """Features of a position, changed by what its earlier indices turned out to be; at first not at all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into = Linear(2 * width, 2 * width)
        self.out = Linear(width, width)
        nn.init.zeros_(self.out.weight)

    def forward(self, features: Float[Tensor, "n f"], embedded: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        embedded = F.rms_norm(embedded, embedded.shape[-1:], eps=EPS)
        value, gate = self.into(torch.cat([features, embedded.to(features.dtype)], dim=-1)).chunk(2, dim=-1)
        return features + self.out(F.silu(gate) * value)


class Head(nn.Module, ABC):
    """Embeds the d indices of a token; its logits of index j are <query_j, vectors_j> + bias_j.

    `chained`: index j is predicted from the features and the indices before it in the same position, so that the d indices
    may have any joint distribution (as a residual quantizer's do; in the literature a small transformer: Lee et al. 2022,
    RQ-Transformer). Without it they are independent, given what the trunk has seen (MaskBit, Weber et al. 2024).
    """

    def __init__(self, sizes: tuple[int, ...], width: int, chained: bool) -> None:
        super().__init__()
        self.sizes = sizes
        self.chains = nn.ModuleList(Chain(width) for _ in sizes[1:] if chained)

    @abstractmethod
    def embed_index(self, j: int, values: Int[Tensor, "*b"]) -> Float[Tensor, "*b f"]:
        """What the trunk sees of index j."""

    @abstractmethod
    def query(self, j: int, features: Float[Tensor, "n f"]) -> Float[Tensor, "n c"]:
        """What index j's vectors are multiplied with."""

    @abstractmethod
    def codes(self, j: int) -> tuple[Float[Tensor, "k c"], Float[Tensor, " k"]]:
        """Vector and bias of every value of index j."""

    def start(self, code_vectors: Sequence[Float[Tensor, "_k _c"]]) -> None:
        """Before training, once: take the tokenizer's code vectors, one table per index, if this head is made of them."""

    def embed(self, tokens: Int[Tensor, "*b d"]) -> Float[Tensor, "*b f"]:
        """What the trunk sees of tokens, or of their first indices: a sum over them."""
        return reduce(torch.add, (self.embed_index(j, values) for j, values in enumerate(tokens.unbind(-1))))

    def maps(self, packed: bool = False) -> tuple[RowMap, ...]:
        """From queries to logits, per index: to be kept by who wants few logits many times."""
        return tuple(RowMap(*self.codes(j), packed=packed) for j in range(len(self.sizes)))

    def logits(self, features: Float[Tensor, "... f"], maps: tuple[RowMap, ...] | None = None) -> HeadLogits:
        """The logits of these positions, to be worked out as they are asked for."""
        return HeadLogits(self, features.reshape(-1, features.shape[-1]), self.maps() if maps is None else maps)

    def loss(
        self, features: Float[Tensor, "n f"], tokens: Int[Tensor, "n d"], label_smoothing: float = 0.0
    ) -> Float[Tensor, ""]:
        """The sum of the cross-entropies (nats) of all positions and indices."""
        terms = [
            linear_cross_entropy(self._asked(j, features, tokens[:, :j]), *self.codes(j), tokens[:, j], label_smoothing)
            for j in range(len(self.sizes))
        ]
        return torch.stack(terms).sum()

    @torch.no_grad()
    def nats(self, features: Float[Tensor, "n f"], tokens: Int[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Nats of each position, summed over its d indices."""
        terms = [
            linear_nats(self._asked(j, features, tokens[:, :j]), *self.codes(j), tokens[:, j]) for j in range(len(self.sizes))
        ]
        return torch.stack(terms).sum(0)

    def bits(self, features: Float[Tensor, "b t f"], tokens: Int[Tensor, "b t d"]) -> Float[Tensor, " b"]:
        """Bits of each image: those of all its positions."""
        nats = self.nats(features.flatten(0, 1), tokens.flatten(0, 1))
        return (nats.double().view(len(tokens), -1).sum(1) / math.log(2)).float()

    def _asked(self, j: int, features: Float[Tensor, "n f"], before: Int[Tensor, "n j"]) -> Float[Tensor, "n c"]:
        if j and self.chains:
            features = self.chains[j - 1](features, self.embed(before))
        return self.query(j, features)


@dataclass(frozen=True)
class HeadLogits(Logits):
    """Logits at n positions, a few at a time: n x k numbers never exist together unless they are asked for together."""

    head: Head
    features: Float[Tensor, "n f"]
    maps: tuple[RowMap, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Logits per index."""
        return self.head.sizes

    @property
    def independent(self) -> bool:
        """Whether the logits of an index are the same whatever the indices before it."""
        return not self.head.chains

    def __call__(self, j: int, places: Int[Tensor, " s"], before: Int[Tensor, "s j"]) -> Float[Tensor, "s k"]:
        """Logits of index j at some of the positions, where its earlier indices have these values."""
        return self.maps[j](self.head._asked(j, self.features[places], before))

    def between(
        self,
        j: int,
        ends: tuple[Int[Tensor, " s"], Int[Tensor, " s"]],
        weight: Float[Tensor, "s 1"],
        before: Int[Tensor, "s j"],
    ) -> Float[Tensor, "s k"]:
        """Logits are linear in queries, so those between two queries' are the logits of a query between them: one product."""
        start, end = (self.head._asked(j, self.features[places], before) for places in ends)
        exact = torch.promote_types(start.dtype, torch.float32)
        query = torch.lerp(start.to(exact), end.to(exact), weight.to(exact))
        return self.maps[j](query.to(start.dtype)).float()


class TiedHead(Head):
    """One table per index: its rows are the embeddings (summed over the d indices) and the vectors of the logits."""

    def __init__(self, sizes: tuple[int, ...], width: int, code_dims: Sequence[int] | None, chained: bool) -> None:
        super().__init__(sizes, width, chained)
        self.tables = nn.ParameterList(nn.Parameter(EMBEDDED * torch.randn(size, width)) for size in sizes)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in sizes)

    def embed_index(self, j: int, values: Int[Tensor, "*b"]) -> Float[Tensor, "*b f"]:
        return F.embedding(values, self.tables[j])

    def query(self, j: int, features: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        return features

    def codes(self, j: int) -> tuple[Float[Tensor, "k f"], Float[Tensor, " k"]]:
        return self.tables[j], self.biases[j]


class CodebookHead(Head):
    """Code vectors v_k, fixed: embedding V v_k, logits <W h, v_k> + b_k (V, W, b learned, per index).

    The vectors are centred and scaled to unit variance per index, which changes neither their geometry nor what the logits
    can be. They are buffers, so a saved prior needs no tokenizer. Raises UserError without `code_dims`, their channels.
    """

    def __init__(self, sizes: tuple[int, ...], width: int, code_dims: Sequence[int] | None, chained: bool) -> None:
        super().__init__(sizes, width, chained)
        if code_dims is None:
            raise UserError("prior.head: made of code vectors, and these tokens come without; tokenize again, or use head=tied")
        for j, (size, dim) in enumerate(zip(sizes, code_dims, strict=True)):
            self.register_buffer(f"vectors_{j}", torch.zeros(size, dim))
        self.inputs = nn.ModuleList(Linear(dim, width) for dim in code_dims)
        self.outputs = nn.ModuleList(Linear(width, dim) for dim in code_dims)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in sizes)
        with torch.no_grad():
            for into, out, dim in zip(self.inputs, self.outputs, code_dims, strict=True):
                into.weight *= EMBEDDED  # pyright: ignore[reportArgumentType, reportOperatorIssue]
                out.weight *= FRESH * dim**-0.5  # pyright: ignore[reportArgumentType, reportOperatorIssue]

    def start(self, code_vectors: Sequence[Float[Tensor, "_k _c"]]) -> None:
        for j, table in enumerate(code_vectors):
            centred = table.double() - table.double().mean(0)
            scale = centred.square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
            self._vectors(j).copy_(centred / scale)

    def embed_index(self, j: int, values: Int[Tensor, "*b"]) -> Float[Tensor, "*b f"]:
        return self.inputs[j](F.embedding(values, self._vectors(j)))

    def query(self, j: int, features: Float[Tensor, "n f"]) -> Float[Tensor, "n c"]:
        return self.outputs[j](features)

    def codes(self, j: int) -> tuple[Float[Tensor, "k c"], Float[Tensor, " k"]]:
        return self._vectors(j), self.biases[j]

    def _vectors(self, j: int) -> Tensor:
        return self.get_buffer(f"vectors_{j}")


class GeometricHead(CodebookHead):
    """LGQ's own rule of assignment: logits -|W h - v_k|^2 / t + b_k, t learned per index.

    That is <2 W h / t, v_k> + b_k - |v_k|^2 / t up to a number that is the same for all k. The last term is what the codebook
    head would have to learn for every code: with it each code, however deep inside the others, is the likeliest for some h.
    """

    def __init__(self, sizes: tuple[int, ...], width: int, code_dims: Sequence[int] | None, chained: bool) -> None:
        super().__init__(sizes, width, code_dims, chained)
        dims = list(code_dims or ())
        # of one number each, for FSDP shards no parameter without an axis
        self.log_temperatures = nn.ParameterList(nn.Parameter(torch.tensor([float(dim)]).log()) for dim in dims)

    def query(self, j: int, features: Float[Tensor, "n f"]) -> Float[Tensor, "n c"]:
        return super().query(j, features) * (2 * (-self.log_temperatures[j]).exp())

    def codes(self, j: int) -> tuple[Float[Tensor, "k c"], Float[Tensor, " k"]]:
        vectors, bias = super().codes(j)
        return vectors, bias - vectors.square().sum(1) * (-self.log_temperatures[j]).exp()


HEADS: dict[str, type[TiedHead] | type[CodebookHead]] = {
    "tied": TiedHead,
    "codebook": CodebookHead,
    "geometric": GeometricHead,
}


def build_head(name: str, sizes: tuple[int, ...], width: int, code_dims: Sequence[int] | None, chained: bool) -> Head:
    """The head of this name; UserError for an unknown name, or where code vectors are wanted and there are none."""
    if name not in HEADS:
        raise UserError(f"prior.head: {name}; {did_you_mean(name, HEADS)}")
    return HEADS[name](sizes, width, code_dims, chained)
