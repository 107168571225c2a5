"""VQ-WAE: the codes transport the latents, by the Wasserstein distance of both (Vuong et al. 2023, arXiv 2302.05917)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.codebooks import start_from_data
from stage1_tokenizer.quantizers.distortion import weighted_distortion
from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.global_batch import gather, global_mean, processes
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes, squared_distances
from stage1_tokenizer.quantizers.soft_assignment import log_partition, soft_assign

DENSE = 1 << 20  # entries of a plan that is held: its iterations then need no matrix products


class VQWAE(Quantizer):
    """q = nearest code, J_z = I; loss lam W2^2 between the batch's vectors (1/N each) and the codes (1/K each), per channel.

    The uniform share of every code is what keeps all of them in use; there is no commitment term. The plan P comes from
    Sinkhorn iterations in the log domain over the global batch, without gradient; sum_ik P_ik |z_i - e_k|^2 then moves
    e_k by 2 sum_i P_ik (e_k - z_i), and z alike (envelope theorem). Above `DENSE` entries (the paper has K = 512) the plan is
    never held: iterations sum the tiles of a matrix product, and of the plan only its moments are made.
    INFERRED: the regularisation, a tenth of the mean squared distance, the number of iterations (the paper has POT's
    solver), the start from k-means, and the mean over channels, to stand beside losses that are means.
    Not built: learned shares of the codes (the ICML version's softmax with a KL to the uniform one).
    """

    def __init__(
        self, dim: int, codebook_size: int, transport_weight: float = 1.0, regularisation: float = 0.1, iterations: int = 30
    ) -> None:
        super().__init__(dim, [codebook_size])
        self.transport_weight = transport_weight
        self.regularisation = regularisation
        self.iterations = iterations
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        index = nearest_codes(z, self.codebook)
        codes = F.embedding(index, self.codebook)
        losses = {}
        if self.training:
            losses["transport"] = self.transport_weight * processes() * self._transport(z) / self.dim
        return QuantizerOutput(straight_through(z, codes), index[:, None], losses)

    def _transport(self, z: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
        """sum_ik P_ik |z_i - e_k|^2 of this process's rows of the plan."""
        epsilon = self.regularisation * global_mean(_mean_cost(z.detach(), self.codebook.detach()))
        if len(z) * len(self.codebook) <= DENSE:
            distances = squared_distances(z, self.codebook)
            return (transport_plan(distances.detach(), epsilon, self.iterations) * distances).sum()
        rows = len(z) * processes()
        with torch.no_grad():
            column = transport_potentials(z, self.codebook, epsilon, self.iterations)
            plan = soft_assign(z, self.codebook, epsilon, prior=column, collected=z)  # rows of the plan, times their number
            each = z.new_full((len(z),), 1 / rows)
        return weighted_distortion(z, self.codebook, each, plan.usage / processes(), plan.sums / rows, plan.codes / rows)

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.embedding(indices[:, 0], self.codebook)

    @torch.no_grad()
    def initialize(self, z: Float[Tensor, "n c"]) -> None:
        self.codebook.copy_(start_from_data(z, len(self.codebook), "kmeans"))


def _mean_cost(z: Float[Tensor, "n c"], codebook: Float[Tensor, "k c"]) -> Float[Tensor, ""]:
    """mean_ik |z_i - c_k|^2, from means: the two clouds' own spreads, and the distance between their centres."""
    spreads = [(points - points.mean(0)).square().sum(1).mean() for points in (z, codebook)]
    return spreads[0] + spreads[1] + (z.mean(0) - codebook.mean(0)).square().sum()


@torch.no_grad()
def transport_potentials(
    z: Float[Tensor, "n c"], codebook: Float[Tensor, "k c"], epsilon: Float[Tensor, ""], iterations: int
) -> Float[Tensor, " k"]:
    """The columns' potentials of `transport_plan` for squared distances, in memory that grows with n + k.

    With them row i of the plan is softmax_k(column_k - |z_i - c_k|^2 / epsilon), times the row's share.
    """
    epsilon = epsilon + torch.finfo(z.dtype).tiny
    per_row, per_column = -math.log(len(z) * processes()), -math.log(len(codebook))
    column = z.new_zeros(len(codebook))
    for _ in range(iterations):
        row = per_row - log_partition(z, codebook, epsilon, column)
        mine = log_partition(codebook, z, epsilon, row)
        column = per_column - gather(mine[None]).logsumexp(0)
    return column


@torch.no_grad()
def transport_plan(
    cost: Float[Tensor, "n k"], epsilon: float | Float[Tensor, ""], iterations: int
) -> Float[Tensor, "n k"]:
    """This process's rows of argmin_P <P, cost> - epsilon H(P) with equal shares of all rows and of all columns.

    Sinkhorn's iterations (Cuturi 2013, arXiv 1306.0895) in the log domain; rows are exact at the end, columns converge.
    """
    n, k = cost.shape
    kernel = -cost / (epsilon + torch.finfo(cost.dtype).tiny)
    per_row, per_column = -math.log(n * processes()), -math.log(k)
    column = cost.new_zeros(k)
    row = per_row - kernel.logsumexp(1)
    for _ in range(iterations):
        mine = (kernel + row[:, None]).logsumexp(0)
        column = per_column - gather(mine[None]).logsumexp(0)
        row = per_row - (kernel + column).logsumexp(1)
    return (kernel + row[:, None] + column).exp()
