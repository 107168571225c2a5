"""What a quantizer is: vectors in; codes, indices and losses out. It has never heard of an image or an optimizer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class QuantizerOutput:
    """What quantizing gives; the leading axes are those of the input ("n", or "b h w" on a grid).

    codes:   the chosen codes, value exact, carrying the method's own gradient.
    indices: int64, "n d" ("b t d" on a grid, t over all scales); column j counts below `sizes[j]`.
    losses:  named scalars to add, already weighted; empty in eval mode, always the same names in train mode.
    further: other codes of the same vectors, no values of the codebook, that the decoder has to render too while it is
             trained; none in eval mode, always as many in train mode.
    """

    codes: Float[Tensor, "... c"]
    indices: Int[Tensor, "... d"]
    losses: dict[str, Float[Tensor, ""]]
    further: tuple[Float[Tensor, "... c"], ...] = ()


class _Part(nn.Module, ABC):
    """What per-vector and grid quantizers share."""

    dim: int  # channels of a code
    input_dim: int  # channels that forward wants: dim, unless the method needs more (a variance, say)
    sizes: tuple[int, ...]  # codes per index; d = len(sizes)

    def __init__(self, dim: int, sizes: Sequence[int], input_dim: int | None = None) -> None:
        super().__init__()
        input_dim = dim if input_dim is None else input_dim
        for name, value in [("dim", dim), ("input_dim", input_dim), *(("codebook_size", size) for size in sizes)]:
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{type(self).__name__}: {name} is {value!r}; it must be an integer of at least 1")
        self.dim = dim
        self.input_dim = input_dim
        self.sizes = tuple(sizes)

    def anneal(self, progress: float) -> None:
        """Between two optimizer steps: move the schedules to `progress` (0 ... 1), apply what forward recorded.

        Temperatures and ramps are functions of progress, kept in buffers. Forward in train mode only *records*
        (counts, sums, candidates), summed over the processes; moving averages and restarts happen here, on every process
        alike. So a step of several micro-batches is one update, and no parameter changes between forward and backward.
        """


class Quantizer(_Part):
    """A per-vector quantizer: vectors do not see each other, except in the losses.

    In eval mode nothing changes, and `forward(z).codes` equals `dequantize(forward(z).indices)` bit for bit.
    """

    @abstractmethod
    def forward(self, z: Float[Tensor, "n input_dim"]) -> QuantizerOutput: ...

    @abstractmethod
    def dequantize(self, indices: Int[Tensor, "n d"]) -> Float[Tensor, "n c"]: ...

    def initialize(self, z: Float[Tensor, "n input_dim"]) -> None:
        """Start from data: once, before training, on every process with its own share of the latents."""


class GridQuantizer(_Part):
    """A quantizer of whole grids, for methods that need the neighbours: multi-scale residual, hierarchical."""

    @abstractmethod
    def forward(self, z: Float[Tensor, "b h w input_dim"]) -> QuantizerOutput: ...

    @abstractmethod
    def dequantize(self, indices: Int[Tensor, "b t d"], grid: tuple[int, int]) -> Float[Tensor, "b h w c"]: ...

    @abstractmethod
    def scales(self, grid: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """(h, w) of every scale in the order of the tokens, for a latent grid (h, w): t = sum of h*w."""

    def initialize(self, z: Float[Tensor, "b h w input_dim"]) -> None:
        """Start from data: once, before training, on every process with its own share of the latents."""


class PerVectorGrid(GridQuantizer):
    """Any per-vector quantizer as a quantizer of grids: one scale, tokens in row-major order."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__(quantizer.dim, quantizer.sizes, quantizer.input_dim)
        self.quantizer = quantizer

    def forward(self, z: Float[Tensor, "b h w input_dim"]) -> QuantizerOutput:
        b, h, w, _ = z.shape
        out = self.quantizer(z.flatten(0, 2))
        return QuantizerOutput(
            out.codes.unflatten(0, (b, h, w)),
            out.indices.unflatten(0, (b, h * w)),
            out.losses,
            tuple(codes.unflatten(0, (b, h, w)) for codes in out.further),
        )

    def dequantize(self, indices: Int[Tensor, "b t d"], grid: tuple[int, int]) -> Float[Tensor, "b h w c"]:
        return self.quantizer.dequantize(indices.flatten(0, 1)).unflatten(0, (len(indices), *grid))

    def scales(self, grid: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        return (grid,)

    def initialize(self, z: Float[Tensor, "b h w input_dim"]) -> None:
        self.quantizer.initialize(z.flatten(0, 2))

    def anneal(self, progress: float) -> None:
        self.quantizer.anneal(progress)


def on_grid(quantizer: Quantizer | GridQuantizer) -> GridQuantizer:
    """The quantizer as one of grids: itself, or wrapped. The only place that tells the two kinds apart."""
    return PerVectorGrid(quantizer) if isinstance(quantizer, Quantizer) else quantizer
