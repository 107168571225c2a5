"""Codes as the means of a mixture: they follow their vectors by expectation maximisation, and dead ones come back."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.codebooks import STARTS, Candidates, average_shares, cluster_counts, start_from_data
from stage1_tokenizer.quantizers.global_batch import global_sum
from stage1_tokenizer.quantizers.interface import Quantizer
from stage1_tokenizer.quantizers.options import one_of
from stage1_tokenizer.quantizers.soft_assignment import SoftAssignment

MEMORY = 0.99  # of the moving average of the shares, per step


class MixtureCodes(Quantizer):
    """A codebook of parameters. Forward in train mode calls `record`, and `anneal` calls `follow_record`.

    Stepwise expectation maximisation (Cappe and Moulines 2009): c_k <- c_k + r_k (sum_i p_ik z_i / sum_i p_ik - c_k), where
    r_k is the batch's part of the code's moving mass. Its steps are as long as needed, where an optimizer's are as long as
    its rate. mass_decay: of the moving mass, per step; without one, codes follow by gradient alone.
    revive_below: a code with less than this part of a fair share, by its moving average, takes the place of a badly served
    vector of the last batch; 0 revives none.
    """

    shares: Tensor
    new_counts: Tensor
    mass: Tensor
    new_mass: Tensor
    new_sums: Tensor

    def __init__(self, dim: int, codebook_size: int, mass_decay: float | None, start: str, revive_below: float) -> None:
        super().__init__(dim, [codebook_size])
        self.mass_decay = mass_decay
        self.start = one_of(f"{type(self).__name__}.start", start, STARTS)
        self.revive_below = revive_below
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))
        self.candidates = Candidates(dim)
        self.register_buffer("shares", torch.full((codebook_size,), 1 / codebook_size))
        self.register_buffer("new_counts", torch.zeros(codebook_size))
        self.register_buffer("mass", torch.zeros(codebook_size))  # 0: no step yet
        self.register_buffer("new_mass", torch.zeros(codebook_size))
        self.register_buffer("new_sums", torch.zeros(codebook_size, dim))

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.embedding(indices[:, 0], self.codebook)

    @torch.no_grad()
    def initialize(self, z: Float[Tensor, "n c"]) -> None:
        self.codebook.copy_(start_from_data(z, len(self.codebook), self.start))

    @torch.no_grad()
    def record(self, z: Float[Tensor, "n c"], soft: SoftAssignment, chosen: Float[Tensor, "n c"]) -> None:
        """Counts, masses and sums of the global batch; `soft` has collected z if there is a mass."""
        self.new_counts += global_sum(cluster_counts(soft.index, self.shares))
        if self.mass_decay is not None:
            self.new_mass += global_sum(soft.usage.detach() * len(z))
            self.new_sums += global_sum(soft.sums)
        self.candidates.record(z, chosen)

    @torch.no_grad()
    def follow_record(self) -> None:
        """Moves the codes by what was recorded since the last call."""
        average_shares(self.shares, self.new_counts, MEMORY)
        if self.mass_decay is not None:
            self._step(self.mass_decay)
        fair = 1 / len(self.shares)
        revived = self.candidates.take(self.codebook, self.shares < self.revive_below * fair)
        self.shares.copy_(torch.where(revived, fair, self.shares))
        self.mass.copy_(torch.where(revived, self.mass.mean(), self.mass))

    def _step(self, decay: float) -> None:
        """Moves each code by the new part of its moving mass: at most the whole way to the mean of its vectors."""
        seen = (self.new_mass.sum() > 0).to(self.mass)
        before = torch.where(self.mass.sum() > 0, self.mass, self.new_mass.mean())
        self.mass.copy_(before.lerp(self.new_mass, (1 - decay) * seen))
        pull = self.new_sums - self.new_mass[:, None] * self.codebook
        self.codebook += (1 - decay) * pull / self.mass.clamp_min(1e-12)[:, None]
        self.new_mass.zero_()
        self.new_sums.zero_()
