"""VQ-WAE: the codes transport the latents, by the Wasserstein distance of both (Vuong et al. 2023, arXiv 2302.05917)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.codebooks import start_from_data
from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.global_batch import gather, global_mean, processes
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes, squared_distances


class VQWAE(Quantizer):
    """q = nearest code, J_z = I; loss lam W2^2 between the batch's vectors (1/N each) and the codes (1/K each), per channel.

    The uniform share of every code is what keeps all of them in use; there is no commitment term. The plan P comes from
    Sinkhorn iterations in the log domain over the global batch, without gradient; sum_ik P_ik |z_i - e_k|^2 then moves
    e_k by 2 sum_i P_ik (e_k - z_i), and z alike (envelope theorem). Dense in vectors times codes, as published (K = 512).
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
            distances = squared_distances(z, self.codebook)
            epsilon = self.regularisation * global_mean(distances.detach().mean())
            plan = transport_plan(distances.detach(), epsilon, self.iterations)
            losses["transport"] = self.transport_weight * processes() * (plan * distances).sum() / self.dim
        return QuantizerOutput(straight_through(z, codes), index[:, None], losses)

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.embedding(indices[:, 0], self.codebook)

    @torch.no_grad()
    def initialize(self, z: Float[Tensor, "n c"]) -> None:
        self.codebook.copy_(start_from_data(z, len(self.codebook), "kmeans"))


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
