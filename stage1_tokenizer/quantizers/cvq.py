"""CVQ: online clustered codebook (Zheng and Vedaldi 2023, arXiv 2307.15139). Codes without vectors move to where data is."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.codebooks import STARTS, average_shares, cluster_counts, start_from_data
from stage1_tokenizer.quantizers.distortion import codebook_and_commitment
from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.global_batch import gather, global_sum
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes
from stage1_tokenizer.quantizers.options import one_of


class CVQ(Quantizer):
    """VQ trained by gradient; before each step e_k <- (1 - a_k) e_k + a_k anchor_k, a_k = exp(-10 K s_k / (1 - decay) - 1e-3).

    s_k is the moving average of the share of code k (equations 5 to 7), anchor_k the vector of the global batch that is
    nearest to it: the public code's anchor="closest", with which 1d-tokenizer uses the method. Its default draws anchors by
    softmax(-distance) and compares cosines. Its contrastive term, off by default, is left out. The start from data is ours:
    from U(-1/K, 1/K) all codes would have the same nearest vector.
    """

    shares: Tensor
    new_counts: Tensor
    anchors: Tensor
    anchor_distances: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        commitment_weight: float = 0.25,
        decay: float = 0.99,
        start: str = "distinct",
    ) -> None:
        super().__init__(dim, [codebook_size])
        self.commitment_weight = commitment_weight
        self.decay = decay
        self.start = one_of("CVQ.start", start, STARTS)
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))
        self.register_buffer("shares", torch.zeros(codebook_size))
        self.register_buffer("new_counts", torch.zeros(codebook_size))
        self.register_buffer("anchors", torch.zeros(codebook_size, dim))
        self.register_buffer("anchor_distances", torch.full((codebook_size,), torch.inf))  # infinite: no anchor yet

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        index = nearest_codes(z, self.codebook)
        codes = F.embedding(index, self.codebook)
        losses = {}
        if self.training:
            losses = codebook_and_commitment(z, codes, self.commitment_weight)
            self.new_counts += global_sum(cluster_counts(index, self.shares))
            self._record_anchors(z)
        return QuantizerOutput(straight_through(z, codes), index[:, None], losses)

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.embedding(indices[:, 0], self.codebook)

    @torch.no_grad()
    def initialize(self, z: Float[Tensor, "n c"]) -> None:
        self.codebook.copy_(start_from_data(z, len(self.codebook), self.start))

    @torch.no_grad()
    def anneal(self, progress: float) -> None:
        seen = average_shares(self.shares, self.new_counts, self.decay)
        pull = (-10 * len(self.shares) * self.shares / (1 - self.decay) - 1e-3).exp() * seen
        self.codebook.lerp_(self.anchors, pull[:, None])
        self.anchor_distances.fill_(torch.inf)

    @torch.no_grad()
    def _record_anchors(self, z: Tensor) -> None:
        """The nearest vector of every code: over the processes, and over the micro-batches since the last step."""
        anchors = z[nearest_codes(self.codebook, z)]
        distances = (anchors - self.codebook).square().sum(1)
        anchors = torch.cat([self.anchors[None], gather(anchors[None])])
        distances = torch.cat([self.anchor_distances[None], gather(distances[None])])
        nearest = distances.argmin(0)
        codes = torch.arange(len(nearest), device=nearest.device)
        self.anchors.copy_(anchors[nearest, codes])
        self.anchor_distances.copy_(distances[nearest, codes])
