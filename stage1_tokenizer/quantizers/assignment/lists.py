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

    def matrix(self, entries: Float[Tensor, " m"]) -> Float[Tensor, "n k"]:
        """The sparse matrix with these entries."""
        return _matrix(_starts(self.row, self.n), self.column, entries, self.k)

    def products(self, left: Float[Tensor, "n f"], right: Float[Tensor, "k f"]) -> Float[Tensor, " m"]:
        """left_i . right_k at the places."""
        return torch.sparse.sampled_addmm(self.matrix(left.new_zeros(len(self.row))), left, right.T, beta=0).values()

    def by_code(self, *entries: Float[Tensor, " m"]) -> Callable[[slice], list[Float[Tensor, "t n"]]]:
        """The same matrices transposed, a part of the codes at a time."""
        column, order = self.column.sort(stable=True)
        starts, row = _starts(column, self.k), self.row[order]
        sorted_entries = [entry[order] for entry in entries]

        def part(codes: slice) -> list[Tensor]:
            pointers = starts[codes.start : codes.stop + 1]
            first, last = pointers[0].item(), pointers[-1].item()
            return [_matrix(pointers - first, row[first:last], x[first:last], self.n) for x in sorted_entries]

        return part


def _matrix(starts: Tensor, column: Tensor, entries: Tensor, columns: int) -> Tensor:
    return torch.sparse_csr_tensor(starts, column, entries, (len(starts) - 1, columns), check_invariants=False)


def _starts(row: Int[Tensor, " m"], n: int) -> Int[Tensor, " n+1"]:
    """Where each row begins."""
    return torch.searchsorted(row, torch.arange(n + 1, dtype=torch.int32, device=row.device), out_int32=True)
