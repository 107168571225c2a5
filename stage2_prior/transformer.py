"""The trunk that all priors share: a pre-norm transformer over (registers, class, tokens), bidirectional or causal, token by
token or group by group.

RMSNorm (Zhang & Sennrich 2019), QK-norm (Henry et al. 2020), SwiGLU (Shazeer 2020), two-dimensional rotary positions
(Su et al. 2021, one half of each head per axis) beside learned ones, register tokens (Darcet et al. 2023), and the
class in every layer through adaLN-single (Chen et al. 2023, PixArt-alpha): one map to six vectors for all layers,
an offset per layer, gates that start at zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stage2_prior.rows import Linear, dropout, dropout_keys

EPS = 1e-6
Labels = Int[Tensor, " b"] | Float[Tensor, "b f"]  # numbers of classes, or vectors that stand between them (`between`)
ROTARY_BASE = 100.0  # the slowest rotation should still turn visibly over a grid of 8 to 64 cells


@dataclass(frozen=True)
class Shape:
    """How large a trunk is: layers, features, attention heads."""

    depth: int
    width: int
    heads: int

    @property
    def hidden(self) -> int:
        """Features inside the SwiGLU: 2/3 of 4 x width, rounded up to a multiple of 64."""
        return -(-8 * self.width // 3 // 64) * 64


SIZES = {
    "nano": Shape(4, 160, 4),  # for two CPU cores
    "T": Shape(6, 384, 6),
    "S": Shape(12, 512, 8),
    "B": Shape(12, 768, 12),
    "L": Shape(24, 1024, 16),
    "XL": Shape(28, 1152, 18),
}


@dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of the first `length` places of some samples: `rows` of those that the storage was made for."""

    keys: Float[Tensor, "l b a s c"]
    values: Float[Tensor, "l b a s c"]
    rows: slice | Int[Tensor, " r"] = field(default_factory=lambda: slice(None))
    length: int = 0

    def part(self, rows: slice | Int[Tensor, " r"], length: int) -> KeyValueCache:
        """The whole storage seen for some of its samples, as filled up to `length`; with a slice nothing is copied."""
        return KeyValueCache(self.keys, self.values, rows, length)

    def write(
        self, layer: int, k: Float[Tensor, "r a n c"], v: Float[Tensor, "r a n c"]
    ) -> tuple[Float[Tensor, "r a s c"], Float[Tensor, "r a s c"]]:
        """Puts keys and values of the next places where they belong: all of this layer's so far."""
        end = self.length + k.shape[2]
        self.keys[layer, self.rows, :, self.length : end] = k
        self.values[layer, self.rows, :, self.length : end] = v
        return self.keys[layer, self.rows, :, :end], self.values[layer, self.rows, :, :end]


def rotary_angles(scales: tuple[tuple[int, int], ...], head: int) -> Float[Tensor, "t {head//2}"]:
    """Angles per position of the tokens, all scales, in units of the finest grid: half of them turn with y, half with x."""
    h, w = scales[-1]
    frequencies = ROTARY_BASE ** -(torch.arange(head // 4, dtype=torch.float64) / (head // 4))
    angles = []
    for rows, columns in scales:
        y = (torch.arange(rows, dtype=torch.float64) + 0.5) * (h / rows)
        x = (torch.arange(columns, dtype=torch.float64) + 0.5) * (w / columns)
        y, x = torch.meshgrid(y, x, indexing="ij")
        angles.append(torch.cat([y.reshape(-1, 1) * frequencies, x.reshape(-1, 1) * frequencies], dim=1))
    return torch.cat(angles).float()


def rotary_tables(
    scales: tuple[tuple[int, int], ...], shape: Shape, prefix: int
) -> tuple[Float[Tensor, "n 1 c2"], Float[Tensor, "n 1 c2"]]:
    """Cosines and sines of the angles of all places, of which the first `prefix` have no place in the picture."""
    angles = F.pad(rotary_angles(scales, shape.width // shape.heads), (0, 0, prefix, 0))
    return angles.cos()[:, None], angles.sin()[:, None]


def rotate(
    x: Float[Tensor, "b n a c"], scale: Float[Tensor, " c"], cos: Float[Tensor, "... n 1 c2"], sin: Float[Tensor, "... n 1 c2"]
) -> Float[Tensor, "b n a c"]:
    """Scales the channels, then turns the pairs (first half, second half) of every head by the angles of its position."""
    first, second = x.chunk(2, dim=-1)
    first_scale, second_scale = scale.chunk(2)
    # the scales go into the tables, which are small, so that the large tensor is passed over as rarely as can be
    turned_first = torch.addcmul(first * (first_scale * cos), second, -(second_scale * sin))
    turned_second = torch.addcmul(second * (second_scale * cos), first, first_scale * sin)
    return torch.cat([turned_first, turned_second], dim=-1)


def between(a: Float[Tensor, "b f"], b: Float[Tensor, "b f"], weight: Float[Tensor, " b"]) -> Float[Tensor, "b f"]:
    """Vectors on the way from a (weight 0) to b (weight 1), both ends exact: along the arc (Shoemake 1985, slerp).

    A straight line between class vectors, which stand about square to each other, would pass the origin at 0.7 of their
    length, where no class is. Vectors of one direction, or of opposite ones, are joined by a line all the same.
    """
    weight, one, other = weight[:, None].float(), a.float(), b.float()
    angle = F.cosine_similarity(one, other)[:, None].clamp(-1, 1).acos()
    sine = angle.sin()
    arc = ((1 - weight) * angle).sin() / sine * one + (weight * angle).sin() / sine * other
    return torch.where(sine < 1e-3, torch.lerp(one, other, weight), arc).to(a.dtype)


def take(x: Float[Tensor, "b n f"], index: Int[Tensor, "b m"]) -> Float[Tensor, "b m f"]:
    """The rows of each sample that its indices name."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def attend(
    q: Float[Tensor, "b a n c"],
    k: Float[Tensor, "b a s c"],
    v: Float[Tensor, "b a s c"],
    causal: bool,
    visible: Bool[Tensor, "n s"] | None = None,
) -> Float[Tensor, "b a n c"]:
    """Softmax attention to the `visible` places, default all; with `causal` to itself and those before, of as many."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=causal)


def modulated(
    x: Float[Tensor, "b n f"], shift: Float[Tensor, "b 1 f"], scale: Float[Tensor, "b 1 f"]
) -> Float[Tensor, "b n f"]:
    """Normalised places, shifted and scaled by the class."""
    return torch.addcmul(shift, F.rms_norm(x, x.shape[-1:], eps=EPS), 1 + scale)


class Layer(nn.Module):
    """Attention and SwiGLU, each normalised, modulated by the class, gated and added: the parts of both kinds of block."""

    def __init__(self, shape: Shape, dropout: float, index: int) -> None:
        super().__init__()
        self.heads, self.dropout, self.index = shape.heads, dropout, index
        self.offsets = nn.Parameter(torch.zeros(6, shape.width))
        self.q = Linear(shape.width, shape.width)
        self.kv = Linear(shape.width, 2 * shape.width)
        self.q_scale = nn.Parameter(torch.ones(shape.width // shape.heads))
        self.k_scale = nn.Parameter(torch.ones(shape.width // shape.heads))
        self.attention_out = Linear(shape.width, shape.width)
        self.mlp_in = Linear(shape.width, 2 * shape.hidden)
        self.mlp_out = Linear(shape.hidden, shape.width)

    def gains(self, modulation: Float[Tensor, "b 6 f"]) -> tuple[Tensor, ...]:
        """Shift, scale and gate of the attention, then of the SwiGLU."""
        return (modulation + self.offsets).unsqueeze(2).unbind(1)

    def keys_values(self, places: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """What places have to offer."""
        k, v = self._heads(self.kv(places), 2 * self.heads).chunk(2, dim=2)
        k = rotate(F.rms_norm(k, k.shape[-1:], eps=EPS), self.k_scale, cos, sin)
        return k.transpose(1, 2), v.transpose(1, 2)

    def queries(self, places: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """What places ask for."""
        q = self._heads(self.q(places), self.heads)
        return rotate(F.rms_norm(q, q.shape[-1:], eps=EPS), self.q_scale, cos, sin).transpose(1, 2)

    def add_branches(self, x: Tensor, attended: Tensor, gains: tuple[Tensor, ...], drops: Tensor | None) -> Tensor:
        """The places with what the attention found, then with what the SwiGLU makes of them."""
        _, _, attention_gate, mlp_shift, mlp_scale, mlp_gate = gains
        branch = self.attention_out(attended.transpose(1, 2).flatten(2))
        x = torch.addcmul(x, attention_gate, self._dropped(branch, drops, 0))
        value, gate = self.mlp_in(modulated(x, mlp_shift, mlp_scale)).chunk(2, dim=-1)
        branch = self.mlp_out(F.silu(gate) * value)
        return torch.addcmul(x, mlp_gate, self._dropped(branch, drops, 1))

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:2], heads, -1)

    def _dropped(self, x: Tensor, drops: Tensor | None, branch: int) -> Tensor:
        return x if drops is None or self.dropout == 0 else dropout(x, self.dropout, drops[branch])


class Block(Layer):
    """Places that look at each other; with `causal`, only at those before them and at themselves."""

    def __init__(self, shape: Shape, causal: bool, dropout: float, index: int) -> None:
        super().__init__(shape, dropout, index)
        self.causal = causal

    def forward(
        self,
        x: Float[Tensor, "b n f"],
        modulation: Float[Tensor, "b 6 f"],
        cos: Float[Tensor, "... n 1 c2"],
        sin: Float[Tensor, "... n 1 c2"],
        drops: Int[Tensor, "2 b"] | None = None,
        queries: Int[Tensor, "b m"] | None = None,
        cache: KeyValueCache | None = None,
        visible: Bool[Tensor, "n s"] | None = None,
    ) -> Float[Tensor, "b m f"]:
        """The places of x, or only `queries` of them (which see all the others); keys and values go into the cache.

        `visible`: which of the places so far each place of x sees, where that is not all of them. `drops`: the keys of both
        branches' dropout; tensors, since a compiler makes one graph for all blocks of what does not differ between them.
        """
        gains = self.gains(modulation)
        places = modulated(x, *gains[:2])
        k, v = self.keys_values(places, cos, sin)
        if queries is not None:
            x, places, cos, sin = take(x, queries), take(places, queries), cos[queries], sin[queries]
        q = self.queries(places, cos, sin)
        if cache is not None:
            k, v = cache.write(self.index, k, v)
        return self.add_branches(x, attend(q, k, v, self.causal, visible), gains, drops)


class Transformer(nn.Module):
    """Registers and class in front of token embeddings, `depth` blocks, a last norm.

    Args: scales: grids of the tokens, coarse to fine. num_classes: the null class is number `num_classes`.
    causal: every place sees only the places before it and itself. dropout: of the two branches of each block.
    target_aware: the class place and every token are told the position of the token that comes next (RAR, Yu et al. 2024).
    groups: sizes of groups of tokens, in their order, that see themselves and the groups before them; registers and class are
    the first group. Without them, and not causal, every place sees all others.
    """

    cos: Tensor
    sin: Tensor
    group: Tensor

    def __init__(
        self,
        scales: tuple[tuple[int, int], ...],
        num_classes: int,
        shape: Shape,
        causal: bool,
        registers: int = 1,
        dropout: float = 0.0,
        target_aware: bool = False,
        groups: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.shape, self.prefix = shape, registers + 1
        positions = sum(h * w for h, w in scales)
        self.registers = nn.Parameter(0.02 * torch.randn(registers, shape.width))
        self.classes = nn.Parameter(0.02 * torch.randn(num_classes + 1, shape.width))
        self.positions = nn.Parameter(0.02 * torch.randn(positions, shape.width))
        self.targets = nn.Parameter(0.02 * torch.randn(positions, shape.width)) if target_aware else None
        self.modulation = Linear(shape.width, 6 * shape.width)
        nn.init.zeros_(self.modulation.weight)  # with the blocks' offsets at zero, all gates start closed
        self.blocks = nn.ModuleList(Block(shape, causal, dropout, index) for index in range(shape.depth))
        self.norm = nn.RMSNorm(shape.width, eps=EPS)
        cos, sin = rotary_tables(scales, shape, self.prefix)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        counts = (self.prefix, *groups) if groups else ()
        self.ends = tuple(accumulate(counts))
        numbers = [number for number, count in enumerate(counts) for _ in range(count)]
        self.register_buffer("group", torch.tensor(numbers, dtype=torch.long), persistent=False)
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func = _recompute

    def forward(
        self,
        x: Float[Tensor, "b n f"],
        labels: Labels,
        seeds: Int[Tensor, " b"] | None = None,
        queries: Int[Tensor, "b m"] | None = None,
        order: Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b m f"]:
        """Features of the class place and of the n token places; `seeds` switch dropout on, one per sample.

        With `queries`, the last block works out these places only: 0 is the class, i + 1 token i. `order`: the positions of
        all tokens in the order in which they come, of which x holds the first n; default: raster.
        """
        n = x.shape[1]
        at, told = (slice(0, n), slice(0, n + 1)) if order is None else (order[:, :n], order[:, : n + 1])
        x = self._placed(x, at, told, labels)
        cos, sin = self.angles(at, self.prefix)
        modulation, visible = self.modulate(labels), self.visible(0, x.shape[1])
        depth = len(self.blocks)
        drops = [None] * depth if seeds is None else dropout_keys(seeds, 2 * depth).unflatten(0, (depth, 2)).unbind()
        for block, keys in zip(self.blocks[:-1], drops[:-1], strict=True):
            x = self.run(block, x, modulation, cos, sin, keys, None, None, visible)
        last, keys = self.blocks[-1], drops[-1]
        if queries is None:
            return self.norm(self.run(last, x, modulation, cos, sin, keys, None, None, visible)[:, self.prefix - 1 :])
        return self.norm(self.run(last, x, modulation, cos, sin, keys, queries + self.prefix - 1))

    def compile_blocks(self, **options: Any) -> None:
        """From now on the blocks run compiled, all by one graph per shape; `options` are torch.compile's.

        Parameters and their names stay as they are; results change by rounding.
        """
        for block in self.blocks:
            block.compile(**{"dynamic": False} | options)

    def run(self, block: nn.Module, *arguments: Tensor | None) -> Tensor:
        """A block's result, worked out again in the backward pass where memory matters more than time."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *arguments)
        return block(*arguments)

    def empty_cache(self, modulation: Float[Tensor, "b 6 f"], places: int) -> KeyValueCache:
        """Storage for keys and values of so many places of these samples, of the type that the modulation has."""
        head = self.shape.width // self.shape.heads
        keys, values = modulation.new_empty(2, self.shape.depth, len(modulation), self.shape.heads, places, head)
        return KeyValueCache(keys, values)

    def extend(
        self,
        x: Float[Tensor, "b n f"],
        labels: Labels,
        modulation: Float[Tensor, "b 6 f"],
        cache: KeyValueCache,
    ) -> Float[Tensor, "b m f"]:
        """Writes tokens that follow the cached ones into the cache: their features, the class place's first if it was empty."""
        first = cache.length == 0
        start = max(cache.length - self.prefix, 0)
        end = start + x.shape[1]
        where = slice(start, end)
        x = self._placed(x, where, slice(start if first else start + 1, end + 1), labels if first else None)
        cos, sin = self.angles(where, self.prefix if first else 0)
        visible = self.visible(cache.length, x.shape[1])
        for block in self.blocks:
            x = block(x, modulation, cos, sin, cache=cache, visible=visible)
        return self.norm(x[:, self.prefix - 1 :] if first else x)

    def class_vectors(self, labels: Labels) -> Float[Tensor, "b f"]:
        """Rows of the table of classes; vectors that are given in place of labels are taken as they are."""
        return labels if labels.is_floating_point() else self.classes[labels]

    def modulate(self, labels: Labels) -> Float[Tensor, "b 6 f"]:
        """What the class does to all blocks."""
        features = F.silu(F.rms_norm(self.class_vectors(labels), self.classes.shape[1:], eps=EPS))
        return self.modulation(features).unflatten(1, (6, -1))

    def visible(self, first: int, n: int) -> Bool[Tensor, "n s"] | None:
        """Which of the places so far each of the n from `first` on sees by its group; None where that hides nothing."""
        end = first + n
        if not any(first < boundary < end for boundary in self.ends):
            return None
        return self.group[first:end, None] >= self.group[:end]

    def angles(
        self, at: slice | Int[Tensor, "b n"], front: int = 0
    ) -> tuple[Float[Tensor, "... m 1 c2"], Float[Tensor, "... m 1 c2"]]:
        """Cosines and sines of the tokens' positions, behind `front` places that have none."""
        if isinstance(at, slice) and at.start == 0:  # as they lie in the tables
            rows = slice(self.prefix - front, self.prefix + at.stop)
            return self.cos[rows], self.sin[rows]
        tables = []
        for table in (self.cos, self.sin):
            turned = _rows(table[self.prefix :], at)
            still = table[:front].expand(*turned.shape[:-3], -1, -1, -1)
            tables.append(torch.cat([still, turned], dim=-3))
        return tables[0], tables[1]

    def _placed(self, x: Tensor, at: slice | Tensor, told: slice | Tensor, labels: Tensor | None) -> Tensor:
        """Embeddings with their positions and targets, behind registers and class if there are labels."""
        x = x + _rows(self.positions, at)
        if labels is not None:
            x = torch.cat([self._prefix(labels), x], dim=1)
        if self.targets is None:
            return x
        untold = 0 if labels is None else self.prefix - 1  # the registers
        return x + F.pad(_rows(self.targets, told), (0, 0, untold, 0))

    def _prefix(self, labels: Tensor) -> Tensor:
        return torch.cat([self.registers.expand(len(labels), -1, -1), self.class_vectors(labels)[:, None]], dim=1)


def _rows(table: Tensor, at: slice | Tensor) -> Tensor:
    """Rows of a table: a view for a slice, else for indices of any shape."""
    return table[at] if isinstance(at, slice) else F.embedding(at, table.flatten(1)).view(*at.shape, *table.shape[1:])


def _recompute(block: nn.Module, *arguments: Tensor | None) -> Tensor:
    result = checkpoint(block, *arguments, use_reentrant=False)
    assert isinstance(result, Tensor)
    return result
