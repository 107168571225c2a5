"""Triton kernels of soft assignment: a program holds a block of vectors and goes over all codes, or the other way round.

Logits are x y^T + bias (+ squares slope^T), in float32 precision (three TF32 products on tensor cores): an index is that of
exact arithmetic wherever two logits differ by more than rounding. Nothing is added by two programs: with the same blocks, which
each process finds by trial, results repeat bit for bit.
A block whose logits are all below the margin (see `search`) is left, after its first product.

Run in Triton's interpreter by the tests, in float32 and float64. On a GPU they have not been run yet: block sizes and the
precision of tl.dot there are chosen by the documentation, not by measurement.
"""
# Triton's language is not Python's:
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl
from triton import knobs

BLOCKS = [(64, 64, 4, 2), (128, 64, 8, 2), (32, 64, 4, 2), (32, 32, 4, 1), (16, 16, 4, 1)]  # the last for 256 channels
INTERPRETED = knobs.runtime.interpret
if INTERPRETED:  # without a clock
    BLOCKS = [(16, 32, 4, 1)]
CONFIGS = [triton.Config({"N": n, "K": k}, num_warps=warps, num_stages=stages) for n, k, warps, stages in BLOCKS]
autotuned = triton.autotune(CONFIGS, key=["k", "channels", "width"])


@triton.jit
def _rows(pointer, at, count, width, PADDED: tl.constexpr):
    """Rows of a contiguous matrix; zeros beyond its `count` rows and `width` columns."""
    column = tl.arange(0, PADDED)
    inside = (at < count)[:, None] & (column < width)[None, :]
    return tl.load(pointer + at.to(tl.int64)[:, None] * width + column[None, :], inside, 0.0)


@triton.jit
def _store_rows(pointer, at, count, width, block, PADDED: tl.constexpr):
    column = tl.arange(0, PADDED)
    inside = (at < count)[:, None] & (column < width)[None, :]
    tl.store(pointer + at.to(tl.int64)[:, None] * width + column[None, :], block, inside)


@triton.jit
def _entries(pointer, at, count):
    return tl.load(pointer + at, at < count, 0.0)


@triton.jit
def _logits(x, squares, y, bias, slope, row, n, column, k, SLOPED: tl.constexpr, PRECISION: tl.constexpr):
    """Block "N K"; -inf outside."""
    logits = tl.dot(x, tl.trans(y), input_precision=PRECISION) + bias[None, :]
    if SLOPED:
        logits += squares[:, None] * slope[None, :]
    return tl.where((row < n)[:, None] & (column < k)[None, :], logits, float("-inf"))


@autotuned
@triton.jit
def forward_rows(
    x_of, squares_of, y_of, bias_of, slope_of, values_of,
    to_codes, to_index, to_purity, to_shift, to_visited,
    n, k, channels, width, margin,
    SLOPED: tl.constexpr, C: tl.constexpr, V: tl.constexpr, PRECISION: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """sum_k p values_k, argmax, sum_k p^2, the shift, and how many logits were within the margin's reach, of N vectors."""
    row = tl.program_id(0) * N + tl.arange(0, N)
    x, squares = _rows(x_of, row, n, channels, C), _entries(squares_of, row, n)
    best = tl.full((N,), float("-inf"), x.dtype)
    index = tl.zeros((N,), tl.int32)
    total, second, codes = tl.zeros((N,), x.dtype), tl.zeros((N,), x.dtype), tl.zeros((N, V), x.dtype)
    visited = 0
    for start in range(0, k, K):
        column = start + tl.arange(0, K)
        y, bias, slope = _rows(y_of, column, k, channels, C), _entries(bias_of, column, k), _entries(slope_of, column, k)
        logits = _logits(x, squares, y, bias, slope, row, n, column, k, SLOPED, PRECISION)
        top, at = tl.max(logits, 1, return_indices=True)
        index = tl.where(top > best, start + at, index)
        if tl.max((top > best - margin).to(tl.int32), 0) > 0:
            higher = tl.maximum(best, top)
            # a row outside has -inf everywhere
            scale = tl.where(row < n, tl.exp(best - higher), 0.0)
            p = tl.where((row < n)[:, None], tl.exp(logits - higher[:, None]), 0.0)
            total = total * scale + tl.sum(p, 1)
            second = second * scale * scale + tl.sum(p * p, 1)
            values = _rows(values_of, column, k, width, V)
            codes = codes * scale[:, None] + tl.dot(p, values, input_precision=PRECISION)
            best = higher
            visited += tl.minimum(K, k - start)
    _store_rows(to_codes, row, n, width, codes / total[:, None], V)
    tl.store(to_index + row, index.to(tl.int64), row < n)
    tl.store(to_purity + row, second / (total * total), row < n)
    tl.store(to_shift + 2 * row, best, row < n)
    tl.store(to_shift + 2 * row + 1, tl.log(total), row < n)
    tl.store(to_visited + row, tl.zeros((N,), tl.int32) + visited, row < n)


@autotuned
@triton.jit
def forward_columns(
    x_of, squares_of, y_of, bias_of, slope_of, shift_of, collected_of,
    to_usage, to_sums,
    n, k, channels, width, margin,
    SLOPED: tl.constexpr, C: tl.constexpr, V: tl.constexpr, PRECISION: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """sum_i p_ik and sum_i p_ik collected_i of K codes."""
    column = tl.program_id(0) * K + tl.arange(0, K)
    y, bias, slope = _rows(y_of, column, k, channels, C), _entries(bias_of, column, k), _entries(slope_of, column, k)
    usage, sums = tl.zeros((K,), y.dtype), tl.zeros((K, V), y.dtype)
    for start in range(0, n, N):
        row = start + tl.arange(0, N)
        x, squares = _rows(x_of, row, n, channels, C), _entries(squares_of, row, n)
        logits = _logits(x, squares, y, bias, slope, row, n, column, k, SLOPED, PRECISION)
        logits -= _entries(shift_of, 2 * row, 2 * n)[:, None]
        if tl.max(tl.max(logits, 1), 0) > -margin:
            p = tl.exp(logits - _entries(shift_of, 2 * row + 1, 2 * n)[:, None])
            usage += tl.sum(p, 0)
            sums += tl.dot(tl.trans(p), _rows(collected_of, row, n, width, V), input_precision=PRECISION)
    tl.store(to_usage + column, usage, column < k)
    _store_rows(to_sums, column, k, width, sums, V)


@autotuned
@triton.jit
def backward_rows(
    x_of, squares_of, y_of, bias_of, slope_of, values_of, shift_of, g_of, a_of, b_of, f_of,
    to_x, to_squares, to_less,
    n, k, channels, width, margin,
    SLOPED: tl.constexpr, C: tl.constexpr, V: tl.constexpr, PRECISION: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The gradients of N left sides, and D - f: sums of p, and of p G, from which D is taken at the end."""
    row = tl.program_id(0) * N + tl.arange(0, N)
    x, squares = _rows(x_of, row, n, channels, C), _entries(squares_of, row, n)
    best, rest = _entries(shift_of, 2 * row, 2 * n), _entries(shift_of, 2 * row + 1, 2 * n)
    g, a, f = _rows(g_of, row, n, width, V), _entries(a_of, row, n), _entries(f_of, row, n)
    mean, product = tl.zeros((N, C), x.dtype), tl.zeros((N, C), x.dtype)
    mean_slope, product_slope, expected = tl.zeros((N,), x.dtype), tl.zeros((N,), x.dtype), tl.zeros((N,), x.dtype)
    for start in range(0, k, K):
        column = start + tl.arange(0, K)
        y, bias, slope = _rows(y_of, column, k, channels, C), _entries(bias_of, column, k), _entries(slope_of, column, k)
        logits = _logits(x, squares, y, bias, slope, row, n, column, k, SLOPED, PRECISION) - best[:, None]
        if tl.max(tl.max(logits, 1), 0) > -margin:
            p = tl.exp(logits - rest[:, None])
            values = _rows(values_of, column, k, width, V)
            pulls = tl.dot(g, tl.trans(values), input_precision=PRECISION)
            pulls = p * (pulls + a[:, None] * p + _entries(b_of, column, k)[None, :])
            expected += tl.sum(pulls, 1)
            mean += tl.dot(p, y, input_precision=PRECISION)
            product += tl.dot(pulls, y, input_precision=PRECISION)
            if SLOPED:
                mean_slope += tl.sum(p * slope[None, :], 1)
                product_slope += tl.sum(pulls * slope[None, :], 1)
    less = expected - f
    _store_rows(to_x, row, n, channels, product - less[:, None] * mean, C)
    tl.store(to_squares + row, product_slope - less * mean_slope, row < n)
    tl.store(to_less + row, less, row < n)


@autotuned
@triton.jit
def backward_columns(
    x_of, squares_of, y_of, bias_of, slope_of, values_of, shift_of, g_of, a_of, b_of, less_of,
    to_y, to_bias, to_slope, to_values,
    n, k, channels, width, margin,
    SLOPED: tl.constexpr, C: tl.constexpr, V: tl.constexpr, PRECISION: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The gradients of K right sides and values."""
    column = tl.program_id(0) * K + tl.arange(0, K)
    y, bias, slope = _rows(y_of, column, k, channels, C), _entries(bias_of, column, k), _entries(slope_of, column, k)
    values, b = _rows(values_of, column, k, width, V), _entries(b_of, column, k)
    y_sum, value_sum = tl.zeros((K, C), y.dtype), tl.zeros((K, V), y.dtype)
    bias_sum, slope_sum = tl.zeros((K,), y.dtype), tl.zeros((K,), y.dtype)
    for start in range(0, n, N):
        row = start + tl.arange(0, N)
        x, squares = _rows(x_of, row, n, channels, C), _entries(squares_of, row, n)
        logits = _logits(x, squares, y, bias, slope, row, n, column, k, SLOPED, PRECISION)
        logits -= _entries(shift_of, 2 * row, 2 * n)[:, None]
        if tl.max(tl.max(logits, 1), 0) > -margin:
            p = tl.exp(logits - _entries(shift_of, 2 * row + 1, 2 * n)[:, None])
            g, a = _rows(g_of, row, n, width, V), _entries(a_of, row, n)
            h = tl.dot(g, tl.trans(values), input_precision=PRECISION) + a[:, None] * p + b[None, :]
            h = p * (h - _entries(less_of, row, n)[:, None])
            y_sum += tl.dot(tl.trans(h), x, input_precision=PRECISION)
            value_sum += tl.dot(tl.trans(p), g, input_precision=PRECISION)
            bias_sum += tl.sum(h, 0)
            if SLOPED:
                slope_sum += tl.sum(h * squares[:, None], 0)
    _store_rows(to_y, column, k, channels, y_sum, C)
    _store_rows(to_values, column, k, width, value_sum, V)
    tl.store(to_bias + column, bias_sum, column < k)
    tl.store(to_slope + column, slope_sum, column < k)
