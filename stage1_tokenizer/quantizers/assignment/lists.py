"""The few codes of each vector that weigh anything, as sparse matrices."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


@dataclass(frozen=True)
class Lists:
    """Places of a matrix "n k", row after row. int32: half the memory, and sorted in half the time."""

    row: Int[Tensor, " m"]
    column: Int[Tensor, " m"]
    n: int
    k: int

    def averages(self, entries: Float[Tensor, " m"], values: Float[Tensor, "k v"]) -> Float[Tensor, "n v"]:
        """The matrix with these entries, times the values."""
        return _product(_starts(self.row, self.n), self.column, entries, values)

    def products(self, left: Float[Tensor, "n f"], right: Float[Tensor, "k f"]) -> Float[Tensor, " m"]:
        """left_i . right_k at the places."""
        if len(self.row) == 0:
            return left.new_zeros(0)
        nothing = _matrix(_starts(self.row, self.n), self.column, left.new_zeros(len(self.row)), self.k)
        return torch.sparse.sampled_addmm(nothing, left, right.T, beta=0).values()

    def by_code(self, *entries: Float[Tensor, " m"]) -> Callable[..., list[Float[Tensor, "t v"]]]:
        """For a part of the codes and as many "n v" as there are entries: the matrices transposed, times these."""
        column, order = self.column.sort(stable=True)
        starts, row = _starts(column, self.k), self.row[order]
        ordered = [entry[order] for entry in entries]

        def sums(part: slice, *collected: Float[Tensor, "n v"]) -> list[Tensor]:
            pointers = starts[part.start : part.stop + 1]
            inside = slice(*pointers[[0, -1]].tolist()) if len(row) else slice(0, 0)
            pointers = pointers - inside.start
            return [_product(pointers, row[inside], x[inside], y) for x, y in zip(ordered, collected, strict=True)]

        return sums


def _product(starts: Tensor, column: Tensor, entries: Tensor, right: Tensor) -> Tensor:
    if len(entries) == 0:
        return right.new_zeros(len(starts) - 1, right.shape[1])
    return _matrix(starts, column, entries, len(right)) @ right


def _matrix(starts: Tensor, column: Tensor, entries: Tensor, columns: int) -> Tensor:
    return torch.sparse_csr_tensor(starts, column, entries, (len(starts) - 1, columns), check_invariants=False)


def _starts(row: Int[Tensor, " m"], n: int) -> Int[Tensor, " n+1"]:
    """Where each row begins."""
    return torch.searchsorted(row, torch.arange(n + 1, dtype=torch.int32, device=row.device), out_int32=True)
