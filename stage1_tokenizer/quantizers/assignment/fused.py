"""Soft assignment by Triton kernels, as operators that PyTorch can trace: `torch.ops.lgq.assign` and its gradient.

For float32 on GPUs; vectors, codes and values of up to 256 channels. `kernels` says what has been run where.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from stage1_tokenizer.quantizers.assignment import kernels
from stage1_tokenizer.quantizers.assignment.scores import Scores
from stage1_tokenizer.quantizers.assignment.search import margin


def assign(
    z: Tensor,
    codebook: Tensor,
    weights: Tensor,
    prior: Tensor | None,
    values: Tensor | None,
    collected: Tensor,
    distance: bool,
) -> tuple[Tensor, ...]:
    """What `soft_assign` gives. The right sides and their gradient are of the codebook's size: a GPU has the room."""
    scores = Scores.of(z, codebook, weights, prior, distance)
    right = scores.right(slice(0, len(codebook)))
    averaged = codebook if values is None else values
    codes, index, purity, usage, shift, sums, visited = assign_op(scores.left, right, averaged, collected, z.shape[1])
    skipped = 1 - visited.to(z.dtype).mean() / len(codebook)
    return codes, index, purity, usage, shift.sum(1) + scores.row, sums, skipped


@torch.library.custom_op("lgq::assign", mutates_args=())
def assign_op(
    left: Tensor, right: Tensor, values: Tensor, collected: Tensor, channels: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """codes "n v", index "n", purity "n", usage "k", shift "n 2", sums "k r" and visited "n", for logits left right^T.

    left "n f" and right "k f" are those of `Scores`, of which the first `channels` columns are vectors. Gradient flows to
    left, right and values. shift: the largest logit and log sum exp above it. visited: codes that were not skipped.
    """
    n, k, v, r = len(left), len(right), values.shape[1], collected.shape[1]
    parts = _parts(left, right, channels)
    values, collected = values.contiguous(), collected.contiguous()
    codes, purity, shift = left.new_empty(n, v), left.new_empty(n), left.new_empty(n, 2)
    index = torch.empty(n, dtype=torch.int64, device=left.device)
    visited = torch.empty(n, dtype=torch.int32, device=left.device)
    usage, sums = left.new_empty(k), left.new_empty(k, r)
    sizes, constants = _arguments(left, right, channels, v)
    kernels.forward_rows[_blocks(n, "N")](*parts, values, codes, index, purity, shift, visited, *sizes, **constants)
    sizes, constants = _arguments(left, right, channels, r)
    kernels.forward_columns[_blocks(k, "K")](*parts, shift, collected, usage, sums, *sizes, **constants)
    return codes, index, purity, usage / n, shift, sums, visited


@assign_op.register_fake
def _(left: Tensor, right: Tensor, values: Tensor, collected: Tensor, channels: int) -> tuple[Tensor, ...]:
    n, k = len(left), len(right)
    index, visited = left.new_empty(n, dtype=torch.int64), left.new_empty(n, dtype=torch.int32)
    codes, sums = left.new_empty(n, values.shape[1]), left.new_empty(k, collected.shape[1])
    return codes, index, left.new_empty(n), left.new_empty(k), left.new_empty(n, 2), sums, visited


@torch.library.custom_op("lgq::assign_backward", mutates_args=())
def backward_op(
    left: Tensor, right: Tensor, values: Tensor, shift: Tensor, g: Tensor, a: Tensor, b: Tensor, f: Tensor, channels: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of left, right and values, from those of codes (g), purity (a), usage (b) and log partition (f)."""
    n, k, v = len(left), len(right), values.shape[1]
    parts, values, (sizes, constants) = _parts(left, right, channels), values.contiguous(), _arguments(left, right, channels, v)
    given = [values, shift.contiguous(), g.contiguous(), (2 * a).contiguous(), (b / n).contiguous()]
    to_x, to_squares, less = left.new_empty(n, channels), left.new_empty(n), left.new_empty(n)
    kernels.backward_rows[_blocks(n, "N")](*parts, *given, f.contiguous(), to_x, to_squares, less, *sizes, **constants)
    to_y, to_bias, to_slope = left.new_empty(k, channels), left.new_empty(k), left.new_empty(k)
    to_values = torch.empty_like(values)
    results = to_y, to_bias, to_slope, to_values
    kernels.backward_columns[_blocks(k, "K")](*parts, *given, less, *results, *sizes, **constants)
    more = left.shape[1] > channels + 1
    to_left = [to_x, torch.zeros_like(less)[:, None], *([to_squares[:, None]] if more else [])]
    to_right = [to_y, to_bias[:, None], *([to_slope[:, None]] if more else [])]
    return torch.cat(to_left, 1), torch.cat(to_right, 1), to_values


@backward_op.register_fake
def _(left: Tensor, right: Tensor, values: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(left), torch.empty_like(right), torch.empty_like(values)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    left, right, values, _, ctx.channels = inputs
    _, index, _, _, shift, sums, visited = output
    ctx.save_for_backward(left, right, values, shift)
    ctx.mark_non_differentiable(index, sums, visited)


def _gradients(ctx: Any, g: Tensor, _: Any, a: Tensor, b: Tensor, shift: Tensor, *__: Any) -> tuple[Tensor | None, ...]:
    left, right, values, saved = ctx.saved_tensors
    # the log partition is the sum of the two shifts, which alone have no meaning: their gradients are the same
    inputs = left, right, values, saved, g, a, b, shift[:, 0], ctx.channels
    return (*torch.ops.lgq.assign_backward(*inputs), None, None)


assign_op.register_autograd(_gradients, setup_context=_save)


def _parts(left: Tensor, right: Tensor, channels: int) -> list[Tensor]:
    """x, squares, y, bias, slope; without slopes anything stands for them."""
    x, y, bias = left[:, :channels].contiguous(), right[:, :channels].contiguous(), right[:, channels].contiguous()
    more = left.shape[1] > channels + 1
    squares, slope = (part[:, channels + 1].contiguous() if more else part[:, 0].contiguous() for part in (left, right))
    return [x, squares, y, bias, slope]


def _blocks(count: int, name: str) -> Any:
    return lambda chosen: (triton.cdiv(count, chosen[name]),)


def _arguments(left: Tensor, right: Tensor, channels: int, width: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    fast = left.is_cuda and left.dtype == torch.float32 and torch.cuda.get_device_capability(left.device) >= (8, 0)
    sizes = len(left), len(right), channels, width, margin(len(right), left.dtype)
    constants = {
        "SLOPED": left.shape[1] > channels + 1,
        "C": max(16, triton.next_power_of_2(channels)),
        "V": max(16, triton.next_power_of_2(width)),
        "PRECISION": "tf32x3" if fast else "ieee",
    }
    return sizes, constants
