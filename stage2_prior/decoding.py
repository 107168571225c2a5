"""Many short passes through a causal trunk: what sampling token by token, or a few tokens at a time, needs.

What depends on the weights and the labels only is worked out once per batch: maps that read the same places are one map, the
class's shifts, scales and gates, rotations with the scales of queries and keys in them. Keys and values are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stage2_prior.rows import RowMap
from stage2_prior.transformer import EPS, Block, Labels, Transformer


@dataclass(frozen=True)
class LayerMaps:
    """The four matrices of a layer: to queries, keys and values; from the heads; into the SwiGLU; out of it."""

    qkv: RowMap
    attention_out: RowMap
    mlp_in: RowMap
    mlp_out: RowMap


def decode(
    x: Float[Tensor, "r n f"],
    layers: Sequence[LayerMaps],
    gains: Float[Tensor, "l 6 r 1 f"],
    turns: Float[Tensor, "l 2 r n 2 1 c"],
    keys: Sequence[Float[Tensor, "r s a c"]],
    values: Sequence[Float[Tensor, "r s a c"]],
    slots: Int[Tensor, "r n"],
    visible: Bool[Tensor, "... n s"] | None,
) -> Float[Tensor, "r n f"]:
    """The places of x after all layers: their keys and values go into these slots, and they see the visible ones.

    `gains`: shift, 1 + scale and gate of both branches. `turns`: cosines, then sines of every place, for queries, then keys.
    `visible` covers the first s slots; None: all that have been written, up to the place's own, of which there is one.
    The shapes say all that a compiler has to know.
    """
    r, n, f = x.shape
    a, c = keys[0].shape[2:]
    rows = torch.arange(r, device=x.device)[:, None]
    for layer, gain, turn, all_keys, all_values in zip(layers, gains.unbind(0), turns.unbind(0), keys, values, strict=True):
        attention_shift, attention_scale, attention_gate, mlp_shift, mlp_scale, mlp_gate = gain.unbind(0)
        places = torch.addcmul(attention_shift, F.rms_norm(x, (f,), eps=EPS), attention_scale)
        qk, v = layer.qkv(places).view(r, n, 3 * a, c).split([2 * a, a], dim=2)
        qk = F.rms_norm(qk, (c,), eps=EPS).view(r, n, 2, a, c)
        cos, sin = turn.unbind(0)
        q, k = torch.addcmul(qk * cos, qk.roll(c // 2, -1), sin).unbind(2)
        all_keys.index_put_((rows, slots), k.to(all_keys.dtype))
        all_values.index_put_((rows, slots), v.to(all_values.dtype))
        s = all_keys.shape[1] if visible is None else visible.shape[-1]
        seen = (each[:, :s].transpose(1, 2) for each in (all_keys, all_values))
        attended = F.scaled_dot_product_attention(q.transpose(1, 2).to(all_keys.dtype), *seen, attn_mask=visible)
        x = torch.addcmul(x, attention_gate, layer.attention_out(attended.transpose(1, 2).reshape(r, n, f)))
        places = torch.addcmul(mlp_shift, F.rms_norm(x, (f,), eps=EPS), mlp_scale)
        value, gate = layer.mlp_in(places).chunk(2, dim=-1)
        x = torch.addcmul(x, mlp_gate, layer.mlp_out(F.silu(gate) * value))
    return x


Step = Callable[..., Tensor]  # `decode`, or that compiled


class StepwiseTrunk:
    """A causal trunk over one batch whose places come a few at a time, each to be written into a slot of its own.

    Args: slots: how many there are. step: `decode`, or that compiled: then single places, whose shapes never change, go
    through it, and all others through `decode`.
    """

    def __init__(self, trunk: Transformer, labels: Labels, slots: int, step: Step) -> None:
        self.trunk, self.step, compiled = trunk, step, step is not decode
        blocks = cast("list[Block]", list(trunk.blocks))
        modulation = trunk.modulate(labels)
        gains = torch.stack([modulation + block.offsets for block in blocks]).transpose(1, 2)
        gains[:, [1, 4]] += 1
        self.gains = gains.unsqueeze(3).contiguous()
        self.turns = torch.stack([turning(trunk, block) for block in blocks], dim=1)
        self.layers = [
            LayerMaps(
                RowMap(torch.cat([block.q.weight, block.kv.weight]), packed=not compiled),
                *(RowMap(each.weight, packed=not compiled) for each in (block.attention_out, block.mlp_in, block.mlp_out)),
            )
            for block in blocks
        ]
        shape = trunk.shape
        # zeros, as what no place may see is still multiplied, with a weight of zero
        self.keys, self.values = (
            [modulation.new_zeros(len(labels), slots, shape.heads, shape.width // shape.heads) for _ in blocks]
            for _ in range(2)
        )
        if compiled:  # else a CUDA graph would copy them all at each step
            weights = [map_.weight for layer in self.layers for map_ in vars(layer).values()]
            for tensor in (*weights, self.gains, *self.keys, *self.values):
                torch._dynamo.mark_static_address(tensor, guard=False)

    def __call__(
        self,
        x: Float[Tensor, "r n f"],
        turns: Int[Tensor, "#r n"],
        slots: Int[Tensor, "#r n"],
        before: Int[Tensor, "#r n"],
        end: int,
        rows: slice,
    ) -> Float[Tensor, "r n f"]:
        """Features of places that see their own slot and those below `before`, all of which lie below `end`.

        `turns`: the places' rows in the trunk's tables of angles. `rows`: the samples of the batch that these are.
        """
        r, n, _ = x.shape
        angles = F.embedding(turns, self.turns.flatten(1)).view(*turns.shape, *self.turns.shape[1:])
        angles = angles.permute(2, 3, 0, 1, 4, 5, 6).expand(-1, -1, r, -1, -1, -1, -1)
        whole = rows == slice(None)
        keys, values = (each if whole else [layer[rows] for layer in each] for each in (self.keys, self.values))
        gains = self.gains if whole else self.gains[:, :, rows]
        single = n == 1
        step = self.step if single else decode
        if step is not decode:
            end = keys[0].shape[1]
        elif single and len(slots) == 1:
            keys, values = ([layer[:, :end] for layer in each] for each in (keys, values))
        visible = None
        if step is not decode or not single or len(slots) > 1:
            places = torch.arange(end, device=x.device)
            visible = ((places < before[..., None]) | (places == slots[..., None]))[:, None]
            visible = visible.expand(r, -1, -1, -1).contiguous()  # strides are part of what a graph is compiled for
        x = step(x, self.layers, gains, angles, keys, values, slots.expand(r, -1).contiguous(), visible)
        return self.trunk.norm(x)


def turning(trunk: Transformer, block: Block) -> Float[Tensor, "p 2 2 1 c"]:
    """Cosines and sines of every row of the trunk's tables, for queries and for keys, with their scales in them.

    A head (first half, second half) times the first plus (second half, first half) times the second is the head, scaled and
    turned: see `rotate`.
    """
    pairs = []
    for scale in (block.q_scale, block.k_scale):
        first, second = scale.chunk(2)
        cos = torch.cat([trunk.cos * first, trunk.cos * second], dim=-1)
        sin = torch.cat([-trunk.sin * second, trunk.sin * first], dim=-1)
        pairs.append(torch.stack([cos, sin], dim=1))
    return torch.stack(pairs, dim=2)
