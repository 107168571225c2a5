"""EMA-VQ: a codebook of moving averages (van den Oord et al. 2017, arXiv 1711.00937, appendix A.1), with restarts."""

from jaxtyping import Float
from torch import Tensor

from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.moving_average import MovingAverageVQ


class VQEMA(MovingAverageVQ):
    """e_k is the moving average of the vectors nearest to it; J_z = I. `MovingAverageVQ` has the equations."""

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        restart_below: float = 0.1,
        start: str = "kmeans",
    ) -> None:
        super().__init__(dim, codebook_size, decay, commitment_weight, restart_below, start)

    def estimate(self, z: Float[Tensor, "n c"], codes: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return straight_through(z, codes)
