"""Several tokens at once, in any order: what each is predicted from, and what the sampler promises."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from pipeline.core.errors import UserError
from stage2_prior.autoregressive import StepwiseLogits
from stage2_prior.logits import TensorLogits
from stage2_prior.orders import PLANNED_ORDERS
from stage2_prior.samplers import sample_autoregressive, sample_in_order
from stage2_prior.sampling import RASTER, UNKNOWN, ARSampling

ANY = {"random_until": 1.0, "raster_from": 1.0}
ORDERS = [RASTER, *PLANNED_ORDERS]
N = 10_000


def nothing(b, t=16, d=1):
    return torch.full((b, t, d), UNKNOWN)


def holes(b=4):
    """Given tokens: none, some in the middle, all but the last two, all."""
    full = torch.randint(11, (b, 16, 1), generator=torch.Generator().manual_seed(1))
    given = nothing(b)
    given[1, 5:12], given[2, :14], given[3] = full[1, 5:12], full[2, :14], full[3]
    return given


def uncached(prior, labels):
    """The same logits by one full pass for every token to come: known tokens, then it, then the others."""

    def logits(tokens, order, known, m, branches):
        features = []
        for branch in prior._branch_labels(labels, branches).unflatten(0, (len(branches), -1)):
            for row, n in enumerate(known):
                for j in range(m):
                    next_one = order[row, min(n + j, 15)]
                    others = order[row, n:][order[row, n:] != next_one]
                    sequence = torch.cat([order[row, :n], next_one[None], others])[None, :16]
                    seen = tokens[row, sequence[0, :n]][None]
                    filled = torch.cat([seen, torch.zeros(1, 16 - n, seen.shape[-1], dtype=torch.long)], dim=1)
                    if sequence.shape[1] < 16:  # beyond the end of the order: means nothing
                        sequence = order[row : row + 1]
                    features.append(prior._features(filled, branch[row : row + 1], order=sequence)[0, min(n, 15)])
        return prior.codes.logits(torch.stack(features))

    return logits


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("registers", [1, 3])
def test_every_token_at_once_is_predicted_as_if_it_came_next(make_prior, dtype, tolerance, registers):
    """Brute force: one full pass per token, whatever was kept from earlier steps, branches that part and catch up."""
    prior = make_prior("ar", **ANY, sizes=[11, 7], registers=registers).to(dtype)
    labels, generator = torch.tensor([0, 3, 4]), torch.Generator().manual_seed(2)
    tokens = torch.stack([torch.randint(size, (3, 16), generator=generator) for size in (11, 7)], dim=-1)
    order = torch.rand(3, 16, generator=generator).argsort(1)
    alike = [([0] * 3, 3, (True, False)), ([3] * 3, 4, (True,)), ([7] * 3, 1, (True,)), ([8] * 3, 8, (True, False))]
    ragged = [([0, 5, 2], 3, (True, False)), ([3, 6, 4], 5, (False,)), ([8, 7, 9], 4, (True, False)), ([12, 7, 13], 3, (True,))]
    with torch.no_grad():
        for plan in (alike, ragged):
            cached, expected = StepwiseLogits(prior, labels), uncached(prior, labels)
            for known, m, branches in plan:
                found = cached(tokens, order, known, m, branches)
                features = expected(tokens, order, known, m, branches).features
                torch.testing.assert_close(found.features, features, atol=tolerance, rtol=tolerance)
                places, before = torch.arange(len(features)), torch.zeros(len(features), 1, dtype=torch.long)
                for j in range(2):
                    logits = prior.codes.logits(features)(j, places, before[:, :j])
                    torch.testing.assert_close(found(j, places, before[:, :j]), logits, atol=10 * tolerance, rtol=tolerance)


def test_a_token_drawn_in_the_same_step_is_not_seen_and_one_of_an_earlier_step_is(make_prior):
    prior, order = make_prior("ar", **ANY), torch.randperm(16, generator=torch.Generator().manual_seed(0))[None]

    def features(tokens):
        logits = StepwiseLogits(prior, torch.tensor([1]))
        logits(tokens, order, [0], 4, (True,))
        return logits(tokens, order, [4], 5, (True,)).features

    tokens = torch.zeros(1, 16, 1, dtype=torch.long)
    with torch.no_grad():
        before = features(tokens)
        for number in range(16):
            changed = tokens.clone()
            changed[0, order[0, number]] = 5
            differs = (features(changed) != before).any(1)
            assert differs.all() if number < 4 else not differs.any()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("guidance", [{}, {"guidance_scale": 2.0, "guidance_interval": (0.3, 0.7)}])
def test_cached_sampling_equals_uncached(make_prior, order, guidance):
    prior, labels, given = make_prior("ar", **ANY), torch.tensor([0, 3, 4, 1]), holes()
    options = ARSampling(steps=5, order=order, **guidance)
    plain = sample_in_order(uncached(prior, labels), given, prior.spec.scales, options, range(4), trace=True)
    samples = prior.sample(labels, options, range(4), given, trace=True)
    assert all(a.equal(b) for a, b in zip(samples.trace, plain.trace, strict=True)) and samples.tokens.equal(plain.tokens)


def test_as_many_steps_as_tokens_is_one_by_one_and_raster_without_steps_is_plain_sampling(make_prior):
    prior, labels = make_prior("ar", **ANY), torch.tensor([0, 3, 4])
    for order in ORDERS:
        one_by_one = prior.sample(labels, ARSampling(order=order), range(3)).tokens
        for steps in (16, 100):
            assert prior.sample(labels, ARSampling(steps=steps, order=order), range(3)).tokens.equal(one_by_one)
        assert not prior.sample(labels, ARSampling(steps=4, order=order), range(3)).tokens.equal(one_by_one)
    options = ARSampling(guidance_scale=2.0, guidance_schedule="linear", final_temperature=0.5)
    logits = StepwiseLogits(prior, labels)
    plain = sample_autoregressive(logits.causal, nothing(3), options, range(3)).tokens
    assert prior.sample(labels, options, range(3)).tokens.equal(plain)


def toy_logits(toy):
    """Exact conditionals of tokens given the known ones alone."""

    def logits(tokens, order, known, m, branches):
        masked = order.argsort(1) >= torch.tensor(known)[:, None]
        at = (torch.tensor(known)[:, None] + torch.arange(m)).clamp(max=toy.t - 1)
        log_probs = toy.conditionals(tokens[..., 0], masked)
        picked = log_probs.gather(1, order.gather(1, at)[..., None].expand(-1, -1, toy.k))
        return TensorLogits([picked.repeat(len(branches), 1, 1)])

    return logits


@pytest.mark.parametrize("order", ORDERS)
def test_one_token_per_step_reproduces_the_joint_distribution_in_every_order(toy, order):
    options = ARSampling(steps=4, order=order)
    tokens = sample_in_order(toy_logits(toy), nothing(N, 4), toy.scales, options, range(N)).tokens
    assert toy.total_variation(tokens) < toy.floor(N)


def test_one_step_draws_from_the_product_of_the_marginals(toy):
    tokens = sample_in_order(toy_logits(toy), nothing(N, 4), toy.scales, ARSampling(steps=1), range(N)).tokens
    marginals = toy.conditionals(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool))[0].exp()
    toy.probabilities = marginals[torch.arange(4), toy.states].prod(1)
    assert toy.total_variation(tokens) < toy.floor(N)


def test_a_hole_is_filled_from_all_that_is_known_around_it(toy):
    """The last token given: in raster order the first three could not see it."""
    given = nothing(N, 4)
    given[:, 3] = 1
    tokens = sample_in_order(toy_logits(toy), given, toy.scales, ARSampling(), range(N)).tokens
    toy.probabilities = torch.where(toy.states[:, 3] == 1, toy.probabilities, 0.0)
    toy.probabilities /= toy.probabilities.sum()
    assert toy.total_variation(tokens) < toy.floor(N)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("order", ORDERS)
def test_given_tokens_never_change_and_every_hole_is_filled(make_prior, dtype, order):
    prior, given = make_prior("ar", **ANY).to(dtype), holes()
    before, state = given.clone(), torch.get_rng_state()
    options = ARSampling(steps=4, order=order, guidance_scale=3.0, guidance_schedule="linear", final_temperature=0.0)
    samples = prior.sample([0, 1, 2, 3], options, range(4), given, trace=True)
    assert given.equal(before) and torch.get_rng_state().equal(state)
    for grid in [*samples.trace, samples.tokens]:
        assert grid[given != UNKNOWN].equal(given[given != UNKNOWN])
    assert (samples.tokens >= 0).all() and (samples.tokens < 11).all()
    counts = torch.stack([(grid == UNKNOWN).sum((1, 2)) for grid in [given, *samples.trace]]).T.tolist()
    assert [len({*row}) - 1 for row in counts] == [4, 4, 2, 0] and samples.trace[-1].equal(samples.tokens)
    assert counts[0] == [16, 14, 11, 6, 0]  # floor(16 cos(pi r / 2))


@pytest.mark.parametrize(("order", "sizes"), [(RASTER, [11]), ("halton", [11]), ("random", [11, 7])])
def test_an_image_is_the_same_alone_and_in_a_batch(make_prior, order, sizes):
    prior = make_prior("ar", **ANY, sizes=sizes)
    given = (holes() % 7).where(holes() >= 0, UNKNOWN).repeat(2, 1, len(sizes))
    labels, seeds = [0, 1, 2, 3, 4, 0, 0, 1], [3, 4, 5, 6, 7, 8, 9, 4]
    options = ARSampling(steps=6, order=order, guidance_scale=2.0, guidance_interval=(0.2, 0.8), top_k=5)
    for known in (None, given):
        together = prior.sample(labels, options, seeds, known).tokens
        for size in (1, 3):
            parts = [slice(start, start + size) for start in range(0, 8, size)][:3]
            split = [prior.sample(labels[p], options, seeds[p], None if known is None else known[p]).tokens for p in parts]
            assert torch.cat(split).equal(together[: 3 * size])
    assert not prior.sample(labels, options, range(8)).tokens.equal(prior.sample(labels, options, seeds).tokens)


def test_random_orders_differ_by_seed_and_progress_counts_steps(make_prior):
    prior, calls = make_prior("ar", **ANY), []
    options = ARSampling(steps=4, order="random")
    counting = lambda done, steps, tokens: calls.append((done, steps)) or tokens  # noqa: E731
    trace = prior.sample([0] * 8, options, range(8), trace=True, progress=counting).trace
    first = (trace[0] >= 0)[..., 0]
    assert len({tuple(row) for row in first.tolist()}) > 4 and first.sum(1).eq(2).all()
    assert all(((a == b) | (a == UNKNOWN)).all() for a, b in pairwise(trace)) and calls == [(i, 4) for i in range(1, 5)]


@pytest.mark.parametrize("trained", [{}, {"random_until": 0.5, "raster_from": 0.75}])
def test_a_prior_that_ended_in_raster_order_refuses_in_one_line(make_prior, trained):
    prior = make_prior("ar", **trained)
    for options in (ARSampling(steps=4), ARSampling(order="halton"), ARSampling(schedule="linear")):
        with pytest.raises(UserError, match="raster_from=1") as caught:
            prior.sample([0], options, [0])
        assert "\n" not in str(caught.value)
    bad: list[dict[str, Any]] = [{"steps": 0}, {"order": "hilton"}, {"schedule": "acos"}]
    for options in bad:
        with pytest.raises(UserError, match=next(iter(options))):
            ARSampling(**options)


def test_single_steps_compile_once_into_one_graph_and_change_nothing(make_prior):
    """fullgraph: no break. One graph for all positions, labels, batches of this size, and given tokens wherever they lie."""
    prior, graphs = make_prior("ar", **ANY, depth=1), []
    options = ARSampling(guidance_scale=2.0, temperature=0.0)
    torch._dynamo.reset()
    eager = [prior.sample(labels, options, range(3)).tokens for labels in ([0, 1, 2], [3, 4, 0])]

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    prior.compile_sampling(backend=backend, mode=None)
    for labels, expected in zip(([0, 1, 2], [3, 4, 0]), eager, strict=True):
        assert prior.sample(labels, options, range(3)).tokens.equal(expected)
        assert len(graphs) == 1
    given = nothing(3)
    given[1, 3:9] = 4
    assert prior.sample([0, 1, 2], options, range(3), given).tokens[1, 3:9].eq(4).all()
    assert len(graphs) == 1
    torch._dynamo.reset()
