"""Code usage against closed forms and counting by hand."""

import math
from collections import Counter

import pytest
import torch

from pipeline.core.code_usage import code_usage


def test_even_use_of_some_codes():
    usage = code_usage(torch.arange(8).repeat(100)[:, None], (32,))
    assert (usage.n, usage.size, usage.active, usage.share) == (800, 32, 8, 0.25)
    assert usage.entropy_bits == pytest.approx(3)
    assert usage.perplexity == pytest.approx(8)


def test_one_code_carries_nothing():
    usage = code_usage(torch.zeros(50, 1, dtype=torch.int64), (4,))
    assert usage.entropy_bits == 0 and usage.perplexity == 1 and usage.effective_bits == 0


def test_counts_are_those_of_a_counter_joint_and_per_index():
    indices = torch.randint(0, 5, (300, 3), generator=torch.Generator().manual_seed(0)) % torch.tensor([5, 3, 2])
    usage = code_usage(indices, (5, 3, 2))
    for column, found in enumerate(usage.per_index):
        assert found.counts.tolist() == sorted(Counter(indices[:, column].tolist()).values(), reverse=True)
    tuples = Counter(map(tuple, indices.tolist()))
    assert usage.counts.tolist() == sorted(tuples.values(), reverse=True)
    assert usage.size == 30 and usage.active == len(tuples)
    wanted = -sum(c / 300 * math.log2(c / 300) for c in tuples.values())
    assert usage.entropy_bits == pytest.approx(wanted)
    assert usage.entropy_bits <= sum(part.entropy_bits for part in usage.per_index) + 1e-9


def test_alphabets_too_large_for_a_number_are_counted_too():
    indices = torch.tensor([[1, 2, 3, 4, 5]] * 3 + [[2**14 - 1] * 5])
    usage = code_usage(indices, (2**14,) * 5)
    assert usage.counts.tolist() == [3, 1] and usage.size == 2**70


def test_the_small_sample_correction_is_millers_and_stops_at_the_nominal_bits():
    tokens = torch.arange(8).repeat(100)[:, None]
    assert code_usage(tokens, (32,)).effective_bits == pytest.approx(3 + 7 / (2 * 800) / math.log(2))
    assert code_usage(tokens, (8,)).effective_bits == 3


def test_the_small_sample_correction_comes_nearer_the_truth():
    indices = torch.randint(0, 256, (1000, 1), generator=torch.Generator().manual_seed(1))
    usage = code_usage(indices, (256,))
    assert usage.entropy_bits < usage.effective_bits <= 8
    assert 8 - usage.effective_bits < (8 - usage.entropy_bits) / 3


def test_grids_of_tokens_are_taken_as_they_are():
    tokens = torch.randint(0, 16, (4, 9, 2))
    assert torch.equal(code_usage(tokens, (16, 16)).counts, code_usage(tokens.reshape(-1, 2), (16, 16)).counts)


@pytest.mark.parametrize(("indices", "sizes"), [([[4]], (4,)), ([[-1]], (4,)), ([[0, 0]], (4,)), ([], (4,))])
def test_what_does_not_fit_is_refused(indices, sizes):
    with pytest.raises(ValueError, match="code_usage"):
        code_usage(torch.tensor(indices, dtype=torch.int64).reshape(len(indices), -1 if indices else 1), sizes)
