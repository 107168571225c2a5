"""VQ with the rotation trick (Fifty et al. 2024, arXiv 2410.06424): the gradient keeps its angle to the code."""

from jaxtyping import Float
from torch import Tensor

from stage1_tokenizer.quantizers.estimators import rotation_trick
from stage1_tokenizer.quantizers.moving_average import MovingAverageVQ


class VQRotation(MovingAverageVQ):
    """q = e_{k*}, J_z = (|q| / |z|) R; the rotation R takes z to the direction of q (section 4.2), R and lengths constant.

    Otherwise `vq_ema`, so that the two differ in the estimator alone: the paper too keeps its codes as moving averages, with
    vector-quantize-pytorch's decay .8 and commitment 1. The start from data and the restarts are ours.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        decay: float = 0.8,
        commitment_weight: float = 1.0,
        restart_below: float = 0.1,
        start: str = "kmeans",
    ) -> None:
        super().__init__(dim, codebook_size, decay, commitment_weight, restart_below, start)

    def estimate(self, z: Float[Tensor, "n c"], codes: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return rotation_trick(z, codes)
