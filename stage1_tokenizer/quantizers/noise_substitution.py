"""NSVQ: noise substitution (Vali and Backstrom 2022, IEEE Access 10, "NSVQ: Noise Substitution in Vector Quantization")."""

from torch import Tensor

from stage1_tokenizer.quantizers.replaced_error import ReplacedError


class NoiseSubstitution(ReplacedError):
    """In train mode q = z + |z - e_{k*}| v / |v|, v ~ N(0, I): the error's length in a random direction; no losses.

    So the codes given in train mode are not those of the indices; in eval mode they are.

    The public code replaces codes used less than .01 times per batch by others plus noise, at intervals that the user
    chooses; here that is less than `replace_below` / K of the vectors, every `replace_every` steps (INFERRED).
    """

    def __init__(self, dim: int, codebook_size: int, replace_every: int = 100, replace_below: float = 0.01) -> None:
        super().__init__(dim, codebook_size, replace_every, replace_below)

    def direction(self, error: Tensor) -> Tensor:
        return self.noise.normal(error)
