"""The trunk that both priors share: a pre-norm transformer over (registers, class, tokens), bidirectional or causal.

RMSNorm (Zhang & Sennrich 2019), QK-norm (Henry et al. 2020), SwiGLU (Shazeer 2020), two-dimensional rotary positions
(Su et al. 2021, one half of each head per axis) beside learned ones, register tokens (Darcet et al. 2023), and the
class in every layer through adaLN-single (Chen et al. 2023, PixArt-alpha): one map to six vectors for all layers,
an offset per layer, gates that start at zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stage2_prior.rows import Linear, dropout

EPS = 1e-6
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
    """Keys and values of the first `length` places of a causal trunk; storage for all places is allocated once."""

    keys: Float[Tensor, "l b a s c"]
    values: Float[Tensor, "l b a s c"]
    modulation: Float[Tensor, "b 6 f"]
    length: int = 0

    def part(self, rows: slice, length: int) -> KeyValueCache:
        """The same storage, seen for some of the samples and as filled up to `length`."""
        return KeyValueCache(self.keys[:, rows], self.values[:, rows], self.modulation[rows], length)

    def write(
        self, layer: int, k: Float[Tensor, "b a n c"], v: Float[Tensor, "b a n c"]
    ) -> tuple[Float[Tensor, "b a s c"], Float[Tensor, "b a s c"]]:
        """Puts keys and values of the next places where they belong: all of this layer's so far."""
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


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


def take(x: Float[Tensor, "b n f"], index: Int[Tensor, "b m"]) -> Float[Tensor, "b m f"]:
    """The rows of each sample that its indices name."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def attend(
    q: Float[Tensor, "b a n c"], k: Float[Tensor, "b a s c"], v: Float[Tensor, "b a s c"], causal: bool
) -> Float[Tensor, "b a n c"]:
    """Softmax attention; with `causal` the queries are the last n of the s places."""
    n, s = q.shape[2], k.shape[2]
    if not causal or n == 1:
        return F.scaled_dot_product_attention(q, k, v)
    if n == s:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    visible = torch.ones(n, s, dtype=torch.bool, device=q.device).tril(s - n)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)


class Block(nn.Module):
    """Attention and SwiGLU, each normalised, modulated by the class, gated and added."""

    def __init__(self, shape: Shape, causal: bool, dropout: float, index: int) -> None:
        super().__init__()
        self.heads, self.causal, self.dropout, self.index = shape.heads, causal, dropout, index
        self.offsets = nn.Parameter(torch.zeros(6, shape.width))
        self.q = Linear(shape.width, shape.width)
        self.kv = Linear(shape.width, 2 * shape.width)
        self.q_scale = nn.Parameter(torch.ones(shape.width // shape.heads))
        self.k_scale = nn.Parameter(torch.ones(shape.width // shape.heads))
        self.attention_out = Linear(shape.width, shape.width)
        self.mlp_in = Linear(shape.width, 2 * shape.hidden)
        self.mlp_out = Linear(shape.hidden, shape.width)

    def forward(
        self,
        x: Float[Tensor, "b n f"],
        modulation: Float[Tensor, "b 6 f"],
        cos: Float[Tensor, "n 1 c2"],
        sin: Float[Tensor, "n 1 c2"],
        seeds: Int[Tensor, " b"] | None = None,
        queries: Int[Tensor, "b m"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "b m f"]:
        """The places of x, or only `queries` of them (which see all the others); keys and values go into the cache."""
        attention_shift, attention_scale, attention_gate, mlp_shift, mlp_scale, mlp_gate = (
            (modulation + self.offsets).unsqueeze(2).unbind(1)
        )
        places = self._modulated(x, attention_shift, attention_scale)
        k, v = self._heads(self.kv(places), 2 * self.heads).chunk(2, dim=2)
        k = rotate(F.rms_norm(k, k.shape[-1:], eps=EPS), self.k_scale, cos, sin)
        if queries is not None:
            x, places, cos, sin = take(x, queries), take(places, queries), cos[queries], sin[queries]
        q = self._heads(self.q(places), self.heads)
        q = rotate(F.rms_norm(q, q.shape[-1:], eps=EPS), self.q_scale, cos, sin)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            k, v = cache.write(self.index, k, v)
        branch = self.attention_out(attend(q, k, v, self.causal).transpose(1, 2).flatten(2))
        x = torch.addcmul(x, attention_gate, self._dropped(branch, seeds, 2 * self.index))
        value, gate = self.mlp_in(self._modulated(x, mlp_shift, mlp_scale)).chunk(2, dim=-1)
        branch = self.mlp_out(F.silu(gate) * value)
        return torch.addcmul(x, mlp_gate, self._dropped(branch, seeds, 2 * self.index + 1))

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:2], heads, -1)

    def _modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.addcmul(shift, F.rms_norm(x, x.shape[-1:], eps=EPS), 1 + scale)

    def _dropped(self, x: Tensor, seeds: Tensor | None, salt: int) -> Tensor:
        return x if seeds is None or self.dropout == 0 else dropout(x, self.dropout, seeds, salt)


class Transformer(nn.Module):
    """Registers and class in front of token embeddings, `depth` blocks, a last norm.

    Args: scales: grids of the tokens, coarse to fine. num_classes: the null class is number `num_classes`.
    causal: every place sees only the places before it and itself. dropout: of the two branches of each block.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        scales: tuple[tuple[int, int], ...],
        num_classes: int,
        shape: Shape,
        causal: bool,
        registers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.shape, self.prefix = shape, registers + 1
        positions = sum(h * w for h, w in scales)
        self.registers = nn.Parameter(0.02 * torch.randn(registers, shape.width))
        self.classes = nn.Parameter(0.02 * torch.randn(num_classes + 1, shape.width))
        self.positions = nn.Parameter(0.02 * torch.randn(positions, shape.width))
        self.modulation = Linear(shape.width, 6 * shape.width)
        nn.init.zeros_(self.modulation.weight)  # with the blocks' offsets at zero, all gates start closed
        self.blocks = nn.ModuleList(Block(shape, causal, dropout, index) for index in range(shape.depth))
        self.norm = nn.RMSNorm(shape.width, eps=EPS)
        angles = rotary_angles(scales, shape.width // shape.heads)
        angles = torch.cat([angles.new_zeros(self.prefix, angles.shape[1]), angles])  # the prefix has no place in the picture
        self.register_buffer("cos", angles.cos()[:, None], persistent=False)
        self.register_buffer("sin", angles.sin()[:, None], persistent=False)
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func = _recompute

    def forward(
        self,
        x: Float[Tensor, "b n f"],
        labels: Int[Tensor, " b"],
        seeds: Int[Tensor, " b"] | None = None,
        queries: Int[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b m f"]:
        """Features of the class place and of the n token places; `seeds` switch dropout on, one per sample.

        With `queries`, the last block works out these places only: 0 is the class, i + 1 token i.
        """
        x = torch.cat([self._prefix(labels), x + self.positions[: x.shape[1]]], dim=1)
        modulation = self._modulation(labels)
        cos, sin = self.cos[: x.shape[1]], self.sin[: x.shape[1]]
        *body, last = self.blocks
        for block in body:
            x = self._run(block, x, modulation, cos, sin, seeds)
        if queries is None:
            return self.norm(self._run(last, x, modulation, cos, sin, seeds)[:, self.prefix - 1 :])
        return self.norm(self._run(last, x, modulation, cos, sin, seeds, queries + self.prefix - 1))

    def _run(self, block: nn.Module, *arguments: Tensor | None) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *arguments)
        return block(*arguments)

    def empty_cache(self, labels: Int[Tensor, " b"], places: int) -> KeyValueCache:
        """Storage for the prefix and `places` tokens of every sample."""
        head = self.shape.width // self.shape.heads
        size = (self.shape.depth, len(labels), self.shape.heads, self.prefix + places, head)
        modulation = self._modulation(labels)
        return KeyValueCache(modulation.new_empty(size), modulation.new_empty(size), modulation)

    def extend(self, x: Float[Tensor, "b n f"], labels: Int[Tensor, " b"], cache: KeyValueCache) -> Float[Tensor, "b f"]:
        """Writes the tokens that follow the cached ones into the cache (the prefix too if it is empty): features of the last.

        n = 0 is possible only with an empty cache.
        """
        start = max(cache.length - self.prefix, 0)
        x = x + self.positions[start : start + x.shape[1]]
        if cache.length == 0:
            x = torch.cat([self._prefix(labels), x], dim=1)
        end = cache.length + x.shape[1]
        for block in self.blocks:
            x = block(x, cache.modulation, self.cos[cache.length : end], self.sin[cache.length : end], cache=cache)
        return self.norm(x[:, -1])

    def _prefix(self, labels: Tensor) -> Tensor:
        return torch.cat([self.registers.expand(len(labels), -1, -1), self.classes[labels, None]], dim=1)

    def _modulation(self, labels: Tensor) -> Tensor:
        features = F.silu(F.rms_norm(self.classes[labels], self.classes.shape[1:], eps=EPS))
        return self.modulation(features).view(len(labels), 6, -1)


def _recompute(block: nn.Module, *arguments: Tensor | None) -> Tensor:
    result = checkpoint(block, *arguments, use_reentrant=False)
    assert isinstance(result, Tensor)
    return result
