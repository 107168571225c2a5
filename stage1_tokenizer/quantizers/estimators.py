"""Gradients through a choice that has none."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from stage1_tokenizer.quantizers.precision import full_precision


def straight_through(path: Float[Tensor, "n c"], codes: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """The codes in value, bit for bit; the gradient of `path` (Bengio et al. 2013: path = z gives the identity)."""
    return codes.detach() + (path - path.detach())  # added this way round, the value is exact


def on_sphere(z: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """z / |z|, J_z = (I - u u^T) / |z|; 0 stays 0, with a gradient that a larger divisor bounds."""
    return F.normalize(z, dim=1, eps=1e-6)


def through_softmax(
    codes: Float[Tensor, "n c"], logits: Float[Tensor, "n k"], codebook: Float[Tensor, "k c"]
) -> Float[Tensor, "n c"]:
    """The chosen codes in value, with their own gradient, and for the logits that of softmax(logits) E, E constant."""
    with full_precision(logits.device):
        return straight_through(logits.softmax(1) @ codebook.detach() + codes, codes)


def rotation_trick(z: Float[Tensor, "n c"], codes: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """The codes in value; J_z = lam R, lam = |q| / |z|, R = I - 2 w w^T / |w|^2 + 2 v u^T, u = z / |z|, v = q / |q|, w = u + v.

    R is the rotation in the plane of u and v that takes u to v (Fifty et al. 2024, section 4.2). Where it does not exist,
    J is lam I (v = -u), or I (a vector or a code of length 0). The public code has a reflection there, or infinities.
    """
    with torch.no_grad():
        length, wanted = z.norm(dim=1, keepdim=True), codes.norm(dim=1, keepdim=True)
        exists = (length > 0) & (wanted > 0)
        scale = torch.where(exists, wanted / length, 1)
        u, v = F.normalize(z, dim=1), F.normalize(codes, dim=1)
        exists &= (u + v).norm(dim=1, keepdim=True) > 1e-3  # nearer to 0 its direction is noise
        w = F.normalize(u + v, dim=1)
    rotated = z - 2 * w * (w * z).sum(1, keepdim=True) + 2 * v * (u * z).sum(1, keepdim=True)
    return straight_through(scale * torch.where(exists, rotated, z), codes)


def step_along(
    z: Float[Tensor, "n c"],
    codes: Float[Tensor, "n c"],
    direction: Float[Tensor, "n c"],
    radius: Callable[[Float[Tensor, "n 1"]], Float[Tensor, "n 1"]] = lambda gap: gap,
) -> Float[Tensor, "n c"]:
    """z + r(|q - z|) u, u the direction's unit vector, without gradient: a step as long as the error, if r is the identity.

    With e the unit vector of q - z: J_z = I - r' u e^T, J_q = r' u e^T. Finite where z = q.
    """
    gap = torch.linalg.vector_norm(codes - z, dim=1, keepdim=True)
    return z + radius(gap) * F.normalize(direction.detach(), dim=1)
