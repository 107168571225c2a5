"""LGQ, ours: the published objective (`lgq_paper`) with each measured defect repaired by an option of its own."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.codebooks import STARTS, Candidates, cluster_counts, evenly, start_from_data
from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.global_batch import global_mean, global_sum, processes
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes, two_nearest
from stage1_tokenizer.quantizers.options import one_of
from stage1_tokenizer.quantizers.schedules import SCHEDULES
from stage1_tokenizer.quantizers.soft_assignment import SoftAssignment, soft_assign
from stage1_tokenizer.quantizers.usage import peak_penalty, unbiased_usage_penalty, usage_penalty

MEMORY = 0.99  # of the moving average of the shares, per step
GAP_MEMORY = 0.9  # of the gap: latents change their scale quickly at first
FOLLOW = ("em", "free_energy", "nearest")
GAP_ROWS = 256  # vectors that the gap is measured on, per global batch


class LGQ(Quantizer):
    """Learnable codes under an annealed soft assignment: the hard code in value, q_soft + rho z in gradient.

    relative_temperature: tau = t * gap, gap the moving average of |z - c_2nd|^2 - |z - c_1st|^2. In that unit t says how
        soft the assignment is, whatever the latents' scale: near data of any dimension p falls with the code's rank r
        about like r^(-1/t). Otherwise tau = t. t goes from temperature_start to temperature_end by `schedule`.
    straight_through_weight: rho. The Jacobian of q_soft vanishes as assignments harden; rho I still reaches the encoder.
    split_gradients: the codebook term moves codes and the commitment term moves z, each with its weight; otherwise the
        published mean(q - z)^2, of weight 1, moves both.
    follow: how codes follow the vectors. "em": stepwise expectation maximisation of the mixture (Cappe and Moulines 2009),
        c_k <- c_k + r_k (sum_i p_ik z_i / sum_i p_ik - c_k), where r_k is the batch's part of the code's moving mass: its
        steps are as long as needed, where an optimizer's are as long as its rate. "free_energy": a loss,
        -tau log sum_k exp(-|z - c_k|^2 / tau) per channel, whose gradient is 2 p_ik (c_k - z_i). "nearest": |z - q|^2, which
        pulls the winner alone. In all three the codes are parameters, which the decoder's gradient reaches too.
    mass_decay: of the moving mass in "em", per step.
    unbiased_usage, global_usage: the usage penalty as a U-statistic, and of all processes' vectors.
    start: "distinct" vectors, or "kmeans" from there. revive_below: a code with less than this part of a fair share,
        by its moving average, takes the place of a badly served vector of the last batch; 0 revives none.

    Like BatchNorm, statistics are buffers that forward in train mode adds to; `anneal` averages them in and revives.
    """

    t: Tensor
    gap: Tensor
    shares: Tensor
    new_gap: Tensor
    new_counts: Tensor
    mass: Tensor
    new_mass: Tensor
    new_sums: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        temperature_start: float = 1.0,
        temperature_end: float = 0.05,
        schedule: str = "geometric",
        relative_temperature: bool = True,
        straight_through_weight: float = 1.0,
        split_gradients: bool = True,
        follow: str = "em",
        mass_decay: float = 0.9,
        commitment_weight: float = 0.25,
        peak_weight: float = 0.005,
        usage_weight: float = 0.005,
        unbiased_usage: bool = True,
        global_usage: bool = True,
        start: str = "kmeans",
        revive_below: float = 0.1,
    ) -> None:
        super().__init__(dim, [codebook_size])
        self.temperature_start = temperature_start
        self.temperature_end = temperature_end
        self.schedule = SCHEDULES[one_of("LGQ.schedule", schedule, SCHEDULES)]
        self.relative_temperature = relative_temperature
        self.straight_through_weight = straight_through_weight
        self.split_gradients = split_gradients
        self.follow = one_of("LGQ.follow", follow, FOLLOW)
        self.mass_decay = mass_decay
        self.commitment_weight = commitment_weight
        self.peak_weight = peak_weight
        self.usage_weight = usage_weight
        self.unbiased_usage = unbiased_usage
        self.global_usage = global_usage
        self.start = one_of("LGQ.start", start, STARTS)
        self.revive_below = revive_below
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))
        self.candidates = Candidates(dim)
        self.register_buffer("t", torch.tensor(float(temperature_start)))
        self.register_buffer("gap", torch.tensor(0.0))  # 0: not measured yet
        self.register_buffer("new_gap", torch.tensor(0.0))
        self.register_buffer("shares", torch.full((codebook_size,), 1 / codebook_size))
        self.register_buffer("new_counts", torch.zeros(codebook_size))
        self.register_buffer("mass", torch.zeros(codebook_size))  # 0: no step yet
        self.register_buffer("new_mass", torch.zeros(codebook_size))
        self.register_buffer("new_sums", torch.zeros(codebook_size, dim))

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        if not self.training:
            index = nearest_codes(z, self.codebook)
            return QuantizerOutput(F.embedding(index, self.codebook), index[:, None], {})
        gap = self._measure_gap(z)
        temperature = self._temperature(gap)
        soft = soft_assign(z, self.codebook, temperature)
        chosen = F.embedding(soft.index, self.codebook)
        codes = straight_through(soft.codes + self.straight_through_weight * z, chosen)
        losses = {
            "peak": self.peak_weight * peak_penalty(soft.purity),
            "usage": self.usage_weight * self._usage_penalty(soft, len(z)),
        }
        if not self.split_gradients:
            losses["reconstruction"] = F.mse_loss(straight_through(soft.codes, chosen), z)
        else:
            losses["commitment"] = self.commitment_weight * F.mse_loss(z, chosen.detach())
            if self.follow == "free_energy":
                losses["codebook"] = _codes_only(-temperature * soft.log_partition, z, soft.codes).mean() / self.dim
            elif self.follow == "nearest":
                losses["codebook"] = F.mse_loss(chosen, z.detach())
        self._record(z, soft, chosen, gap)
        return QuantizerOutput(codes, soft.index[:, None], losses)

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.embedding(indices[:, 0], self.codebook)

    @torch.no_grad()
    def initialize(self, z: Float[Tensor, "n c"]) -> None:
        self.codebook.copy_(start_from_data(z, len(self.codebook), self.start))
        self.gap.copy_(self._measure_gap(z))

    @torch.no_grad()
    def anneal(self, progress: float) -> None:
        self.t.fill_(self.schedule(self.temperature_start, self.temperature_end, progress))
        counted = self.new_counts.sum()
        seen = (counted > 0).to(self.shares)  # calls without a forward between are one
        self.gap.copy_(torch.where(self.gap > 0, self.gap.lerp(self.new_gap, (1 - GAP_MEMORY) * seen), self.new_gap))
        self.shares.lerp_(self.new_counts / counted.clamp_min(1), (1 - MEMORY) * seen)
        self.new_counts.zero_()
        self._em_step()
        fair = 1 / len(self.shares)
        revived = self.candidates.take(self.codebook, self.shares < self.revive_below * fair)
        self.shares.copy_(torch.where(revived, fair, self.shares))
        self.mass.copy_(torch.where(revived, self.mass.mean(), self.mass))

    def _em_step(self) -> None:
        """Moves each code by the new part of its moving mass: at most the whole way to the mean of its vectors."""
        seen = (self.new_mass.sum() > 0).to(self.mass)
        before = torch.where(self.mass.sum() > 0, self.mass, self.new_mass.mean())
        self.mass.copy_(before.lerp(self.new_mass, (1 - self.mass_decay) * seen))
        pull = self.new_sums - self.new_mass[:, None] * self.codebook
        self.codebook += (1 - self.mass_decay) * pull / self.mass.clamp_min(1e-12)[:, None]
        self.new_mass.zero_()
        self.new_sums.zero_()

    @torch.no_grad()
    def _measure_gap(self, z: Tensor) -> Tensor:
        first, second = two_nearest(z[:: evenly(len(z), GAP_ROWS)], self.codebook).unbind(1)
        # the small part of the distance keeps gradients finite where no gap is left: equal codes, a single code
        return global_mean((second - first + 1e-4 * first).mean())

    def _temperature(self, gap: Tensor) -> Tensor:
        if not self.relative_temperature:
            return self.t
        return (self.t * torch.where(self.gap > 0, self.gap, gap)).clamp_min(1e-12)

    def _usage_penalty(self, soft: SoftAssignment, vectors: int) -> Tensor:
        usage, purity = soft.usage, soft.purity.mean()
        if self.global_usage:
            usage, purity, vectors = global_mean(usage), global_mean(purity), vectors * processes()
        return unbiased_usage_penalty(usage, purity, vectors) if self.unbiased_usage else usage_penalty(usage)

    @torch.no_grad()
    def _record(self, z: Tensor, soft: SoftAssignment, chosen: Tensor, gap: Tensor) -> None:
        self.new_gap.copy_(gap)
        self.new_counts += global_sum(cluster_counts(soft.index, self.shares))
        if self.follow == "em":
            self.new_mass += global_sum(soft.usage.detach() * len(z))
            self.new_sums += global_sum(soft.sums)
        self.candidates.record(z, chosen)


def _codes_only(energy: Float[Tensor, " n"], z: Float[Tensor, "n c"], mean: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """The free energy without its gradient for z, which is 2 (z - sum_k p_ik c_k) by the envelope theorem."""
    return energy - ((z - z.detach()) * (2 * (z - mean)).detach()).sum(1)
