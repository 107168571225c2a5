"""DiVeQ: differentiable vector quantization by reparameterization (openreview KRVnpTbx7R)."""

import math

from torch import Tensor

from stage1_tokenizer.quantizers.replaced_error import ReplacedError


class DiVeQ(ReplacedError):
    """In train mode q = z + |z - e_{k*}| u, u the unit vector of e_{k*} - z + v, v ~ N(0, noise_variance I); no losses.

    With e the unit vector of e_{k*} - z, J_z = I - u e^T and J_e = u e^T. So the codes given in train mode are near those
    of the indices, and theirs up to rounding at `noise_variance` 0 (the paper's "detach" variant).

    The public code adds 1e-9 N(0, I) to replaced codes. Its SF-DiVeQ quantizes onto segments between codes, which are no
    tokens, and is not here.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        noise_variance: float = 1e-3,
        replace_every: int = 100,
        replace_below: float = 0.01,
    ) -> None:
        super().__init__(dim, codebook_size, replace_every, replace_below)
        self.noise_variance = noise_variance

    def direction(self, error: Tensor) -> Tensor:
        return error + math.sqrt(self.noise_variance) * self.noise.normal(error)
