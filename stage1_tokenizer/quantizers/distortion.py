"""Loss terms on the distance between vectors and their codes."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def codebook_and_commitment(
    z: Float[Tensor, "n c"], codes: Float[Tensor, "n c"], commitment_weight: float
) -> dict[str, Float[Tensor, ""]]:
    """mean|sg z - q|^2, which moves the codes, and beta mean|z - sg q|^2, which moves z (VQ-VAE, equation 3)."""
    return {
        "codebook": F.mse_loss(codes, z.detach()),
        "commitment": commitment_weight * F.mse_loss(z, codes.detach()),
    }
