"""Nearest search, estimators, usage terms, codebook maintenance, schedules."""

import pytest
import torch

from stage1_tokenizer.quantizers import codebooks, nearest
from stage1_tokenizer.quantizers.assignment import tiles
from stage1_tokenizer.quantizers.codebooks import (
    Candidates,
    cluster_counts,
    cluster_sums,
    distinct_start,
    kmeans,
    start_from_data,
)
from stage1_tokenizer.quantizers.estimators import straight_through
from stage1_tokenizer.quantizers.nearest import nearest_codes, two_nearest
from stage1_tokenizer.quantizers.schedules import geometric, linear
from stage1_tokenizer.quantizers.usage import peak_penalty, perplexity, unbiased_usage_penalty, usage_penalty


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


TILINGS = [(1024, 1 << 20), (1, 1), (7, 7), (64, 1000), (20, 1000)]


@pytest.mark.parametrize("tiling", TILINGS)
def test_nearest_equals_brute_force_for_every_tiling(draw, tiling, monkeypatch):
    monkeypatch.setitem(tiles.TILE, "cpu", tiling)
    z = torch.randn(50, 6, generator=draw, dtype=torch.float64) + 5
    codebook = torch.randn(33, 6, generator=draw, dtype=torch.float64) + 5
    expected = (z[:, None] - codebook[None]).square().sum(-1).argmin(1)
    assert torch.equal(nearest_codes(z, codebook), expected)


@pytest.mark.parametrize("tiling", TILINGS)
def test_the_lowest_index_wins_a_tie(tiling, monkeypatch):
    monkeypatch.setitem(tiles.TILE, "cpu", tiling)
    codebook = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-18.0, -10.0]])
    z = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert nearest_codes(z, codebook).tolist() == [1, 1]
    assert nearest_codes(z, codebook.repeat(20, 1)).tolist() == [1, 1]


def test_nearest_far_from_the_origin_is_exact_in_float32(draw):
    codebook = 1000 + torch.randint(0, 50, (64, 4), generator=draw).float()
    assert torch.equal(codebook[nearest_codes(codebook, codebook)], codebook)


def test_no_vector_gives_no_index():
    assert nearest_codes(torch.zeros(0, 3), torch.zeros(4, 3)).shape == (0,)


@pytest.mark.parametrize("at_once", [1, 3, 1 << 14])
def test_two_nearest_against_brute_force(draw, at_once, monkeypatch):
    monkeypatch.setattr(nearest, "CODES_AT_ONCE", at_once)
    z, codebook = torch.randn(20, 3, generator=draw), torch.randn(8, 3, generator=draw)
    distances = (z[:, None] - codebook[None]).square().sum(-1)
    expected = distances.topk(2, largest=False).values
    torch.testing.assert_close(two_nearest(z, codebook), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(two_nearest(z, codebook[:1]), distances[:, :1].expand(-1, 2), rtol=1e-4, atol=1e-5)


def test_straight_through_is_exact_in_value_and_has_the_gradient_of_the_path(draw):
    z = torch.randn(100, 5, generator=draw, requires_grad=True)
    codes = torch.randn(100, 5, generator=draw) * 1e-3
    out = straight_through(3 * z, codes)
    assert torch.equal(out, codes)
    out.sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, torch.full_like(z, 3))


def test_usage_terms_against_their_definitions(draw):
    p = torch.randn(17, 6, generator=draw, dtype=torch.float64).softmax(1)
    purity, usage = p.square().sum(1), p.mean(0)
    pairs = p @ p.T
    different = pairs.sum() - pairs.trace()
    torch.testing.assert_close(unbiased_usage_penalty(usage, purity.mean(), 17), 6 * different / (17 * 16))
    torch.testing.assert_close(usage_penalty(usage), 6 * pairs.mean())
    torch.testing.assert_close(peak_penalty(purity), 1 - purity.mean())
    torch.testing.assert_close(perplexity(usage), torch.distributions.Categorical(usage).entropy().exp())


def test_usage_terms_at_their_extremes():
    uniform, one = torch.full((8,), 1 / 8), torch.eye(8)[3].requires_grad_()
    assert usage_penalty(uniform) == 1
    assert usage_penalty(one) == 8
    torch.testing.assert_close(perplexity(uniform), torch.tensor(8.0))
    value = perplexity(one)
    value.backward()
    assert value == 1
    assert one.grad is not None
    assert one.grad.isfinite().all()
    assert unbiased_usage_penalty(one, torch.tensor(1.0), 1) == 0


def test_the_unbiased_usage_penalty_is_unbiased(draw):
    """Its mean over batches of 4 is K |mean p|^2; the plain one's is higher."""
    p = (3 * torch.randn(4000, 5, generator=draw, dtype=torch.float64)).softmax(1)
    batches = p.view(1000, 4, 5)
    mean = torch.stack([unbiased_usage_penalty(b.mean(0), b.square().sum(1).mean(), 4) for b in batches]).mean()
    plain = torch.stack([usage_penalty(b.mean(0)) for b in batches]).mean()
    truth = 5 * p.mean(0).square().sum()
    assert abs(mean - truth) < 0.03
    assert plain - truth > 0.3


@pytest.mark.parametrize("start", ["distinct", "kmeans"])
@pytest.mark.parametrize("vectors", [1, 3, 40, 200])
def test_starts_have_no_two_codes_alike(draw, start, vectors):
    z = torch.randn(vectors, 4, generator=draw).repeat(3, 1)
    codes = start_from_data(z, 64, start)
    assert codes.shape == (64, 4)
    assert len(codes.unique(dim=0)) == 64
    assert torch.equal(codes, start_from_data(z, 64, start))
    assert torch.isin(distinct_start(z, 64)[: min(vectors, 64)], z).all()


def test_kmeans_finds_separate_clusters_and_keeps_empty_centres(draw):
    means = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    z = means.repeat_interleave(50, 0) + 0.1 * torch.randn(150, 2, generator=draw)
    far = torch.tensor([[1e3, 1e3]])
    centres = kmeans(z, torch.cat([means + 1, far]))
    torch.testing.assert_close(centres[:3], z.view(3, 50, 2).mean(1))
    assert torch.equal(centres[3:], far)


def test_kmeans_ends_when_nothing_changes_or_its_budget_is_spent(draw, monkeypatch):
    z, start = torch.randn(200, 2, generator=draw), torch.randn(8, 2, generator=draw)
    searches = []
    monkeypatch.setattr(codebooks, "nearest_codes", lambda *inputs: searches.append(1) or nearest_codes(*inputs))
    converged = kmeans(z, start, iterations=200)
    assert len(searches) < 100
    assert torch.equal(kmeans(z, converged), converged)
    once = kmeans(z, start, iterations=1)
    searches.clear()
    monkeypatch.setattr(codebooks, "DISTANCES", 200 * 8)
    assert torch.equal(kmeans(z, start), once)
    assert len(searches) == 1
    assert torch.equal(start_from_data(z, 200, "kmeans"), distinct_start(z, 200))
    assert len(searches) == 1


def test_cluster_counts_and_sums(draw):
    z, index = torch.randn(30, 3, generator=draw), torch.randint(0, 5, (30,), generator=draw)
    one_hot = torch.nn.functional.one_hot(index, 6).float()
    assert torch.equal(cluster_counts(index, torch.zeros(6)), one_hot.sum(0))
    torch.testing.assert_close(cluster_sums(z, index, torch.zeros(6, 3)), one_hot.T @ z)


def test_candidates_are_badly_served_vectors_each_once(draw):
    z = torch.randn(100, 3, generator=draw)
    codes = z.clone()
    codes[::5] += 1.0  # only these are badly served
    candidates = Candidates(3, count=8)
    candidates.record(z, codes)
    chosen = candidates.vectors[candidates.present]
    assert len(chosen) == 8
    assert len(chosen.unique(dim=0)) == 8
    assert all((row == z[::5]).all(1).any() for row in chosen)


def test_dead_codes_take_candidates_until_there_are_none(draw):
    candidates = Candidates(3, count=4)
    z = torch.randn(2, 3, generator=draw)
    candidates.record(z, z + 1)
    codebook = torch.zeros(5, 3)
    revived = candidates.take(codebook, torch.tensor([False, True, False, True, True]))
    assert revived.tolist() == [False, True, False, True, False]
    assert torch.equal(codebook[[1, 3]], z)
    assert not candidates.take(codebook, torch.ones(5, dtype=torch.bool)).any()


def test_schedules():
    assert linear(1.0, 0.0, 0.25) == 0.75
    assert geometric(4.0, 0.25, 0.5) == pytest.approx(1.0)
