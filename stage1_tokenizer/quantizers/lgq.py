"""LGQ, ours: the published objective (`lgq_paper`) with an option for each defect found; results/LOG.md has their worth."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from stage1_tokenizer.quantizers.codebooks import evenly
from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.global_batch import global_mean, processes
from stage1_tokenizer.quantizers.interface import QuantizerOutput
from stage1_tokenizer.quantizers.mixture_codes import MixtureCodes
from stage1_tokenizer.quantizers.nearest import nearest_codes, two_nearest
from stage1_tokenizer.quantizers.options import one_of
from stage1_tokenizer.quantizers.schedules import SCHEDULES
from stage1_tokenizer.quantizers.soft_assignment import SoftAssignment, soft_assign
from stage1_tokenizer.quantizers.usage import peak_penalty, unbiased_usage_penalty, usage_penalty

GAP_MEMORY = 0.9  # of the gap: latents change their scale quickly at first
FOLLOW = ("em", "free_energy", "nearest")
GAP_ROWS = 256  # vectors that the gap is measured on, per global batch


class LGQ(MixtureCodes):
    """Learnable codes under an annealed soft assignment: the hard code in value, q_soft + rho z in gradient.

    relative_temperature: tau = t * gap, gap the moving average of |z - c_2nd|^2 - |z - c_1st|^2. In that unit t says how
        soft the assignment is, whatever the latents' scale: near data of any dimension p falls with the code's rank r
        about like r^(-1/t). Otherwise tau = t. t goes from temperature_start to temperature_end by `schedule`.
    straight_through_weight: rho. The Jacobian of q_soft vanishes as assignments harden; rho I still reaches the encoder.
    split_gradients: the codebook term moves codes and the commitment term moves z, each with its weight; otherwise the
        published mean(q - z)^2, of weight 1, moves both.
    follow: how codes follow the vectors. "em": stepwise expectation maximisation, with mass_decay (see `MixtureCodes`).
        "free_energy": a loss, -tau log sum_k exp(-|z - c_k|^2 / tau) per channel, whose gradient is 2 p_ik (c_k - z_i).
        "nearest": |z - q|^2, which pulls the winner alone. In all three the decoder's gradient reaches the codes too.
    unbiased_usage, global_usage: the usage penalty as a U-statistic, and of all processes' vectors.
    start: "distinct" vectors, or "kmeans" from there. revive_below: the part of a fair share below which a code is dead.

    Like BatchNorm, statistics are buffers that forward in train mode adds to; `anneal` averages them in and revives.
    """

    t: Tensor
    gap: Tensor
    new_gap: Tensor

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
        super().__init__(dim, codebook_size, mass_decay if follow == "em" else None, start, revive_below)
        self.follow = one_of("LGQ.follow", follow, FOLLOW)
        self.temperature_start = temperature_start
        self.temperature_end = temperature_end
        self.schedule = SCHEDULES[one_of("LGQ.schedule", schedule, SCHEDULES)]
        self.relative_temperature = relative_temperature
        self.straight_through_weight = straight_through_weight
        self.split_gradients = split_gradients
        self.commitment_weight = commitment_weight
        self.peak_weight = peak_weight
        self.usage_weight = usage_weight
        self.unbiased_usage = unbiased_usage
        self.global_usage = global_usage
        self.register_buffer("t", torch.tensor(float(temperature_start)))
        self.register_buffer("gap", torch.tensor(0.0))  # 0: not measured yet
        self.register_buffer("new_gap", torch.tensor(0.0))

    def forward(self, z: Float[Tensor, "n c"]) -> QuantizerOutput:
        if not self.training:
            index = nearest_codes(z, self.codebook)
            return QuantizerOutput(F.embedding(index, self.codebook), index[:, None], {})
        gap = self._measure_gap(z)
        temperature = self._temperature(gap)
        soft = soft_assign(z, self.codebook, temperature, collected=None if self.mass_decay is None else z)
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
        self.new_gap.copy_(gap)
        self.record(z, soft, chosen)
        return QuantizerOutput(codes, soft.index[:, None], losses)

    @torch.no_grad()
    def initialize(self, z: Float[Tensor, "n c"]) -> None:
        super().initialize(z)
        self.gap.copy_(self._measure_gap(z))

    @torch.no_grad()
    def anneal(self, progress: float) -> None:
        self.t.fill_(self.schedule(self.temperature_start, self.temperature_end, progress))
        seen = (self.new_counts.sum() > 0).to(self.gap)  # calls without a forward between are one
        self.gap.copy_(torch.where(self.gap > 0, self.gap.lerp(self.new_gap, (1 - GAP_MEMORY) * seen), self.new_gap))
        self.follow_record()

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


def _codes_only(energy: Float[Tensor, " n"], z: Float[Tensor, "n c"], mean: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """The free energy without its gradient for z, which is 2 (z - sum_k p_ik c_k) by the envelope theorem."""
    return energy - ((z - z.detach()) * (2 * (z - mean)).detach()).sum(1)
