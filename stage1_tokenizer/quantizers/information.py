"""Minus the information that codes hold of vectors, mean_i H(p_i) - H(mean_i p_i) in nats: the entropy loss of MAGVIT-v2."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from stage1_tokenizer.quantizers.global_batch import global_mean
from stage1_tokenizer.quantizers.precision import full_precision
from stage1_tokenizer.quantizers.soft_assignment import soft_assign
from stage1_tokenizer.quantizers.usage import entropy


def negative_information(z: Float[Tensor, "n c"], codebook: Float[Tensor, "k c"], temperature: float) -> Float[Tensor, ""]:
    """For p = softmax_k(z.c_k / temperature); the mean over i is that of the global batch. Between -log K and 0."""
    soft = soft_assign(z, codebook, temperature, "dot")
    each = soft.log_partition - (z * soft.codes).sum(1) / temperature  # log Z - sum_k p log(p Z)
    return each.mean() - entropy(global_mean(soft.usage))


def negative_information_of_bits(logits: Float[Tensor, "n b"], group_bits: int) -> Float[Tensor, ""]:
    """For independent bits, P(bit_ij = 1) = sigmoid(logit_ij): the codes are the 2^b patterns, which are never listed.

    H(p_i) is exactly the sum of the bits' entropies. H(mean_i p_i) is exact for each group of `group_bits` bits, and summed
    over the groups: an upper bound of the joint entropy, and equal to it for a single group (BSQ, section 3). A group's mean
    distribution is one matrix product of its halves', so 18 bits take n * 2^9 numbers, not n * 2^18.
    """
    size = logits.abs()
    each = (F.softplus(-size) + size * (-size).sigmoid()).sum(1)
    with full_precision(logits.device):
        groups = [entropy(global_mean(_mean_pattern(group))) for group in logits.split(group_bits, 1)]
    return each.mean() - sum(groups, each.new_zeros(()))


def _mean_pattern(logits: Float[Tensor, "n g"]) -> Float[Tensor, " 2**g"]:
    """mean_i prod_j P(bit_ij), for every pattern of the bits."""
    low, high = logits.tensor_split(2, 1)
    return (_patterns(high).T @ _patterns(low) / len(logits)).flatten()


def _patterns(logits: Float[Tensor, "n g"]) -> Float[Tensor, "n 2**g"]:
    """prod_j P(bit_ij) for every pattern of the bits, bit 0 fastest."""
    both = logits.new_ones(len(logits), 1)
    for logit in logits.unbind(1):
        both = ((logit[:, None] * logit.new_tensor([-1, 1])).sigmoid()[:, :, None] * both[:, None]).flatten(1)
    return both
