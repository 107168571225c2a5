"""What quantizers with a codebook of moving averages share (van den Oord et al. 2017, appendix A.1)."""

from abc import abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from stage1_tokenizer.quantizers.codebooks import STARTS, Candidates, cluster_counts, cluster_sums, ema_codes, start_from_data
from stage1_tokenizer.quantizers.global_batch import global_sum
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes
from stage1_tokenizer.quantizers.options import one_of


class MovingAverageVQ(Quantizer):
    """n_k and m_k are moving averages of a code's count and sum of vectors, e_k = m_k / n_k; loss beta mean|z - sg q|^2.

    The codebook is a buffer: forward in train mode adds counts and sums of the global batch, `anneal` averages them in.
    A code whose share of the vectors falls below `restart_below` / K takes a vector of the last batch and a fair share
    (Jukebox, arXiv 2005.00341, restarts codes by a count; a share does not depend on the batch size). 0 restarts none.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor
    new_counts: Tensor
    new_sums: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        decay: float,
        commitment_weight: float,
        restart_below: float,
        start: str,
    ) -> None:
        super().__init__(dim, [codebook_size])
        self.decay = decay
        self.commitment_weight = commitment_weight
        self.restart_below = restart_below
        self.start = one_of(f"{type(self).__name__}.start", start, STARTS)
        self.candidates = Candidates(dim)
        self.register_buffer("codebook", torch.randn(codebook_size, dim))
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", self.codebook.clone())
        self.register_buffer("new_counts", torch.zeros(codebook_size))
        self.register_buffer("new_sums", torch.zeros(codebook_size, dim))

    @abstractmethod
    def estimate(self, z: Float[Tensor, "n c"], codes: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The codes in value, with the method's gradient for z."""

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        index = nearest_codes(z, self.codebook)
        codes = F.embedding(index, self.codebook)
        losses = {}
        if self.training:
            losses["commitment"] = self.commitment_weight * F.mse_loss(z, codes)
            self.new_counts += global_sum(cluster_counts(index, self.counts))
            self.new_sums += global_sum(cluster_sums(z, index, self.sums))
            self.candidates.record(z, codes)
        return QuantizerOutput(self.estimate(z, codes), index[:, None], losses)

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.embedding(indices[:, 0], self.codebook)

    def initialize(self, z: Float[Tensor, "n c"]) -> None:
        self.codebook.copy_(start_from_data(z, len(self.codebook), self.start))
        self.counts.fill_(1)
        self.sums.copy_(self.codebook)

    @torch.no_grad()
    def anneal(self, progress: float) -> None:
        seen = self.new_counts.sum() > 0  # two calls without a forward between them are one
        weight = torch.where(seen, 1 - self.decay, 0.0).to(self.counts)
        self.counts.lerp_(self.new_counts, weight)
        self.sums.lerp_(self.new_sums, weight)
        self.codebook.copy_(torch.where(seen, ema_codes(self.counts, self.sums), self.codebook))
        self.new_counts.zero_()
        self.new_sums.zero_()
        fair = self.counts.mean()
        restarted = self.candidates.take(self.codebook, self.counts < self.restart_below * fair)
        self.counts.copy_(torch.where(restarted, fair, self.counts))
        self.sums.copy_(torch.where(restarted[:, None], self.codebook * fair, self.sums))
