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


def weighted_distortion(
    z: Float[Tensor, "n c"],
    codebook: Float[Tensor, "k c"],
    of_vectors: Float[Tensor, " n"],
    of_codes: Float[Tensor, " k"],
    sums: Float[Tensor, "k c"],
    means: Float[Tensor, "n c"] | None = None,
) -> Float[Tensor, ""]:
    """sum_ik w_ik |z_i - c_k|^2 for weights known by their sums: over codes, over vectors, w^T z and w codebook.

    Gradient flows to the codebook, 2 sum_i w_ik (c_k - z_i), and with `means` to z, 2 sum_k w_ik (z_i - c_k).
    """
    centre = codebook.detach().mean(0)  # distances are the same, and squares cancel less
    codes, z = codebook - centre, (z.detach() if means is None else z) - centre
    cross = (codes * (sums - of_codes[:, None] * centre)).sum()
    if means is not None:
        also = (z * (means - of_vectors[:, None] * centre)).sum()  # the same number, with the gradient for z
        cross = cross + (also - also.detach())
    return of_vectors @ z.square().sum(1) - 2 * cross + of_codes @ codes.square().sum(1)
