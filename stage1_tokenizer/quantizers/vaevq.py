"""VAEVQ: vector quantization of a variational encoder, its codebook kept near N(0, I) (Yang et al. 2025, arXiv 2511.06863)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.codebooks import start_from_data
from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.interface import Quantizer, QuantizerOutput
from stage1_tokenizer.quantizers.nearest import nearest_codes
from stage1_tokenizer.quantizers.noise import Noise
from stage1_tokenizer.quantizers.precision import full_precision

LOG_VARIANCE = (-20.0, 10.0)


class VAEVQ(Quantizer):
    """e = NN(z_c) among E = B W^T, z_c = mu + sigma noise in training, mu in eval (eq. 1, 2); e and z_c are decoded (eq. 4).

    q = mu + sigma sg((e - mu) / sigma) + e - sg e: J_mu = I, J_sigma = that ratio, J_e = I. The input is mu, then
    log sigma^2; z_c is the output's `further` code. Losses: RCS 1/2 mean((e - mu) / sg sigma)^2, DCR the squared Wasserstein
    distance of the codes' Gaussian to N(0, I), KL(N(mu, sigma^2) || N(0, I)) per channel. B and W are both trained.
    The released code searches for mu, drops KL and DCR from its loss and lets RCS move sigma; this follows the paper.
    INFERRED: the perceptual and adversarial losses see both decodes, W has no bias and starts at I, B from k-means,
    log sigma^2 is clamped to [-20, 10].
    """

    def __init__(
        self, dim: int, codebook_size: int, rcs_weight: float = 1.0, dcr_weight: float = 0.1, kl_weight: float = 1e-5
    ) -> None:
        super().__init__(dim, [codebook_size], input_dim=2 * dim)
        self.rcs_weight = rcs_weight
        self.dcr_weight = dcr_weight
        self.kl_weight = kl_weight
        self.basis = nn.Parameter(torch.randn(codebook_size, dim))
        self.weight = nn.Parameter(torch.eye(dim))
        self.noise = Noise()

    def codebook(self) -> Float[Tensor, "k c"]:
        with full_precision(self.basis.device):
            return self.basis @ self.weight.T

    def forward(self, z: Float[Tensor, "n input_dim"]) -> QuantizerOutput:
        mean, log_variance = z.chunk(2, 1)
        codebook = self.codebook()
        if not self.training:
            index = nearest_codes(mean, codebook)
            return QuantizerOutput(F.embedding(index, codebook), index[:, None], {})
        log_variance = log_variance.clamp(*LOG_VARIANCE)
        deviation = (log_variance / 2).exp()
        sample = mean + deviation * self.noise.normal(mean)
        index = nearest_codes(sample, codebook)
        codes = F.embedding(index, codebook)
        ratio = (codes - mean) / deviation.detach()
        losses = {
            "rcs": self.rcs_weight * ratio.square().mean() / 2,
            "dcr": self.dcr_weight * distance_to_standard_normal(codebook),
            "kl": self.kl_weight * (mean.square() + deviation.square() - log_variance - 1).mean() / 2,
        }
        path = mean + deviation * ratio.detach() + codes
        return QuantizerOutput(straight_through(path, codes), index[:, None], losses, (sample,))

    def dequantize(self, indices: Int[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return F.embedding(indices[:, 0], self.codebook())

    @torch.no_grad()
    def initialize(self, z: Float[Tensor, "n input_dim"]) -> None:
        self.basis.copy_(start_from_data(z.chunk(2, 1)[0], len(self.basis), "kmeans"))
        self.weight.copy_(torch.eye(self.dim))


def distance_to_standard_normal(points: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    """W2^2(N(m, S), N(0, I)) = |m|^2 + tr S + c - 2 tr S^(1/2), with m and S the points' mean and covariance."""
    with full_precision(points.device):
        mean = points.mean(0)
        centred = points - mean
        variances = torch.linalg.eigvalsh(centred.T @ centred / len(points))
        # where the points span no direction the root has no slope; the clamp leaves it out of the gradient
        return mean.square().sum() + (variances.clamp_min(1e-12).sqrt() - 1).square().sum()
