"""Next-scale prediction: what sees what, that its bits are a likelihood, and that its sampler draws from the model."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.core.errors import UserError
from stage2_prior.logits import TensorLogits
from stage2_prior.next_scale import CachedLogits, picture_so_far
from stage2_prior.samplers import sample_autoregressive, sample_next_scale
from stage2_prior.sampling import UNKNOWN, ARSampling, NextScaleSampling

SCALES = ((1, 1), (2, 2), (3, 3), (4, 4))
ENDS = (0, 1, 5, 14, 30)
SETS = list(itertools.pairwise(ENDS))  # first and last position of every scale


def draw_tokens(sizes, b, t=30):
    generator = torch.Generator().manual_seed(b)
    return torch.stack([torch.randint(size, (b, t), generator=generator) for size in sizes], dim=-1)


@pytest.fixture
def make(make_prior):
    """A small prior of four scales."""
    return lambda **options: make_prior("var", **{"scales": [list(scale) for scale in SCALES], **options})


def grown_and_averaged(embedded):
    """The inputs of all places from the recursion that VAR states: f_hat += up(E[scale]); input = down(f_hat)."""
    b, _, f = embedded.shape
    picture, inputs = torch.zeros(b, f, 4, 4), []
    for (start, end), (h, w) in zip(SETS, SCALES, strict=True):
        inputs.append(F.interpolate(picture, size=(h, w), mode="area").flatten(2).transpose(1, 2))
        codes = embedded[:, start:end].transpose(1, 2).unflatten(2, (h, w))
        picture = picture + F.interpolate(codes, size=(4, 4), mode="bicubic")
    return torch.cat(inputs, dim=1)


def test_a_place_is_given_the_mean_of_the_picture_so_far_in_its_cell(make):
    embedded = torch.randn(2, 30, 8)
    torch.testing.assert_close(picture_so_far(SCALES) @ embedded, grown_and_averaged(embedded), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(picture_so_far(SCALES)[1:, 0], torch.ones(29))  # one token over everything
    prior, tokens = make(), draw_tokens([11], 2)
    scales = prior.scale_vectors.repeat_interleave(torch.tensor([1, 4, 9, 16]), 0)
    expected = grown_and_averaged(prior.codes.embed(tokens)) + scales
    torch.testing.assert_close(prior.inputs(tokens[:, :14]), expected, rtol=1e-4, atol=1e-5)
    for (start, end), (first, _) in zip(SETS, SETS, strict=True):  # also what is new only, as sampling asks for it
        torch.testing.assert_close(prior.inputs(tokens[:, :first], start), expected[:, start:end], rtol=1e-4, atol=1e-5)


def test_a_token_is_predicted_from_all_coarser_scales_and_from_nothing_else(make, monkeypatch):
    prior = make()
    leaf = torch.randn(1, 30, 32, requires_grad=True)
    monkeypatch.setattr(prior.codes, "embed", lambda tokens: leaf[:, : tokens.shape[1]])
    for start, end in SETS:
        for i in (start, end - 1):
            features = prior._features(draw_tokens([11], 1), torch.tensor([2]))
            (gradient,) = torch.autograd.grad((features[0, i] * torch.linspace(-1, 1, 32)).sum(), leaf, allow_unused=True)
            size = torch.zeros(30) if gradient is None else gradient[0].abs().sum(1)
            assert (size[:start] > 0).all() and (size[start:] == 0).all()


def test_places_of_a_scale_see_each_other_and_the_places_in_front_see_no_token(make):
    trunk = make().trunk
    x = torch.randn(1, 30, 32, requires_grad=True)
    for i, (_, end) in ((0, (0, 0)), *((start + 1, (start, end)) for start, end in SETS)):
        (gradient,) = torch.autograd.grad((trunk(x, torch.tensor([1]))[0, i] * torch.linspace(-1, 1, 32)).sum(), x)
        size = gradient[0].abs().sum(1)
        assert (size[:end] > 0).all() and (size[end:] == 0).all()


@pytest.mark.parametrize("options", [{"sizes": [3]}, {"sizes": [2, 3]}, {"sizes": [2, 3], "chained": False}])
def test_the_likelihoods_of_all_grids_sum_to_one(make, options):
    prior = make(scales=[[1, 1], [1, 2]], **options)
    token = list(itertools.product(*map(range, options["sizes"])))
    grids = torch.tensor(list(itertools.product(token, repeat=3)))
    for label in (0, 3):
        bits = prior.validation_bits(grids, torch.full((len(grids),), label), {})
        assert (-bits.double()).exp2().sum().item() == pytest.approx(1, abs=1e-5)
        assert bits.std() > 0.1


@pytest.mark.parametrize("sizes", [[11], [7, 5]])
def test_the_loss_is_the_cross_entropy_of_all_tokens(make, sizes):
    prior = make(sizes=sizes, label_smoothing=0.1, class_dropout=0.0)
    tokens, labels, noise = draw_tokens(sizes, 3), torch.arange(3), prior.draw_noise(3, torch.Generator().manual_seed(0))
    logits = prior.codes.logits(prior._features(tokens, labels))
    smoothed, nats = torch.zeros(()), torch.zeros(90)
    for j in range(len(sizes)):
        each, target = logits(j, torch.arange(90), tokens.flatten(0, 1)[:, :j]), tokens[..., j].flatten()
        smoothed = smoothed + F.cross_entropy(each, target, label_smoothing=0.1, reduction="sum")
        nats = nats + F.cross_entropy(each, target, reduction="none")
    torch.testing.assert_close(prior(tokens, labels, noise), smoothed)
    assert prior.loss_count(noise) == 3 * 30 * len(sizes)
    torch.testing.assert_close(prior.validation_bits(tokens, labels, noise), nats.detach().view(3, 30).sum(1) / math.log(2))


@pytest.mark.parametrize("sizes", [[11], [7, 5]])
@torch.no_grad()
def test_cached_logits_equal_a_full_pass(make, sizes):
    prior, tokens, labels = make(sizes=sizes), draw_tokens(sizes, 3), torch.tensor([0, 3, 4])
    full = {branch: prior._features(tokens, prior._branch_labels(labels, (branch,))) for branch in (True, False)}
    # the first scale in one branch, the other catches up; together; or one branch is left out until the last scale
    plans = [[(True,), (True, False), (True, False), (True, False)], [(True, False), (False,), (False,), (True, False)]]
    for plan in plans:
        cached = CachedLogits(prior, labels)
        for (start, end), branches in zip(SETS, plan, strict=True):
            logits, n = cached(tokens[:, :start], branches), 3 * (end - start) * len(branches)
            expected = prior.codes.logits(torch.cat([full[branch][:, start:end] for branch in branches]))
            for j in range(len(sizes)):
                places, before = torch.arange(n), torch.zeros(n, j, dtype=torch.long)
                torch.testing.assert_close(logits(j, places, before), expected(j, places, before), atol=1e-5, rtol=1e-5)


def test_cached_sampling_equals_uncached(make):
    prior, labels = make(sizes=[7, 5]), torch.tensor([0, 3, 4])
    given = torch.full((3, 30, 2), UNKNOWN)
    given[1, 2:12], given[:, 1:5] = 3, 1  # a whole scale among them, which takes no pass

    def uncached(tokens, branches):
        i = tokens.shape[1]
        filled = torch.cat([tokens, torch.zeros(3, 30 - i, 2, dtype=torch.long)], dim=1).repeat(len(branches), 1, 1)
        features = prior._features(filled, prior._branch_labels(labels, branches))
        return prior.codes.logits(features[:, i : ENDS[ENDS.index(i) + 1]])

    for options in (
        NextScaleSampling(temperature=0.0, guidance_scale=2.0),
        NextScaleSampling(guidance_scale=3.0, guidance_schedule="constant", final_temperature=0.7),
        NextScaleSampling(guidance_scale=3.0, guidance_interval=(0.2, 0.6), top_p=0.9),
    ):
        for known in (torch.full_like(given, UNKNOWN), given):
            plain = sample_next_scale(uncached, known, SCALES, options, [1, 2, 3]).tokens
            assert prior.sample(labels, options, [1, 2, 3], known).tokens.equal(plain)


def grouped(toy, ends):
    """The toy's conditionals of all tokens up to the next end, given those before; one branch is as good as the other."""

    def logits(tokens, branches):
        (b, i, _), end = tokens.shape, next(end for end in ends if end > tokens.shape[1])
        filled = torch.cat([tokens[..., 0], torch.zeros(b, toy.t - i, dtype=torch.long)], dim=1)
        masked = (torch.arange(toy.t) >= i).expand(b, -1)
        return TensorLogits([toy.conditionals(filled, masked)[:, i:end].repeat(len(branches), 1, 1)])

    return logits


@pytest.mark.parametrize("scales", [((1, 1), (1, 3)), ((1, 1), (1, 1), (1, 2)), ((1, 1),) * 4])
def test_samples_have_the_joint_distribution_of_the_model(toy, scales):
    """The product over the scales of the products within each: with one token a scale, the toy's own distribution."""
    n, ends = 10_000, tuple(itertools.accumulate(h * w for h, w in scales))
    tokens = sample_next_scale(grouped(toy, ends), torch.full((n, 4, 1), UNKNOWN), scales, NextScaleSampling(), range(n)).tokens
    product = torch.zeros(len(toy.states), dtype=torch.float64)
    for start, end in itertools.pairwise((0, *ends)):
        logits = toy.conditionals(toy.states, (torch.arange(4) >= start).expand(len(toy.states), -1))
        product += logits.gather(2, toy.states[..., None])[:, start:end, 0].sum(1)
    if len(scales) == 4:
        torch.testing.assert_close(product.exp(), toy.probabilities)
    else:
        assert (product.exp() - toy.probabilities).abs().sum() > 0.1
    toy.probabilities = product.exp()
    assert toy.total_variation(tokens) < toy.floor(n)


def test_one_token_a_scale_is_autoregressive_sampling(toy, causal):
    given = torch.full((50, 4, 1), UNKNOWN)
    given[::3, 1], given[::4, 3] = 2, 0
    options = {"guidance_scale": 2.0, "guidance_schedule": "constant", "top_k": 2, "temperature": 1.2, "final_temperature": 0.6}
    serial = sample_autoregressive(causal(toy.masked_logits), given, ARSampling(**options, lookahead=1), range(50))
    scaled = sample_next_scale(grouped(toy, (1, 2, 3, 4)), given, ((1, 1),) * 4, NextScaleSampling(**options), range(50))
    assert scaled.tokens.equal(serial.tokens)


class BranchLogits:
    """Random logits of d = 2 indices that depend on the sample, the branch and what is known; keeps the branches asked for."""

    def __init__(self, dtype=torch.float32):
        generator = torch.Generator().manual_seed(0)
        self.calls, self.dtype = [], dtype
        self.tables = [3 * torch.randn(2, 6, 30, size, generator=generator) for size in (7, 5)]

    def __call__(self, tokens, branches):
        i = tokens.shape[1]
        self.calls.append((i, branches))
        here = slice(i, ENDS[ENDS.index(i) + 1])
        turn = 1 + tokens.sum((1, 2)).float().sin().view(1, -1, 1, 1)
        return TensorLogits(
            [(torch.stack([each[int(branch), :, here] for branch in branches]) * turn).to(self.dtype) for each in self.tables]
        )


def test_guidance_grows_from_scale_to_scale_and_asks_for_no_branch_that_it_does_not_need():
    def run(**options):
        logits = BranchLogits()
        nothing = torch.full((6, 30, 2), UNKNOWN)
        samples = sample_next_scale(logits, nothing, SCALES, NextScaleSampling(**options), range(6))
        return samples.tokens, [branches for _, branches in logits.calls]

    assert run()[1] == [(True,)] * 4 and run(guidance_scale=0.0)[1] == [(False,)] * 4
    assert run(guidance_scale=3.0)[1] == [(True,), *[(True, False)] * 3]
    inside = run(guidance_scale=3.0, guidance_schedule="constant", guidance_interval=(0.25, 0.75))
    assert inside[1] == [(True,), (True, False), (True, False), (True,)]
    assert run(guidance_scale=1.0 + 1e-6)[0].equal(run()[0]) and not run(guidance_scale=3.0)[0].equal(run()[0])


def test_the_guidance_scale_of_every_scale_can_be_read_off_its_tokens():
    """Guided logits 2 s x - x^2, that is s^2 - (s - x)^2: the likeliest value is the x nearest to the guidance scale s."""
    x = torch.arange(41) / 10
    branch = {False: -x.square(), True: 2 * x - x.square()}

    def logits(tokens, branches):
        i = tokens.shape[1]
        each = torch.stack([branch[conditional] for conditional in branches])
        return TensorLogits([each[:, None, None].expand(-1, 2, ENDS[ENDS.index(i) + 1] - i, -1)])

    def read(**options):
        options = NextScaleSampling(temperature=0.0, **options)
        tokens = sample_next_scale(logits, torch.full((2, 30, 1), UNKNOWN), SCALES, options, [0, 1]).tokens
        return [x[tokens[:, start:end].unique()].tolist() for start, end in SETS]

    def near(*scales):
        return [pytest.approx([scale]) for scale in scales]

    assert read(guidance_scale=2.5) == near(1.0, 1.5, 2.0, 2.5)  # VAR: 1 + w ratio, w = 1.5
    assert read(guidance_scale=2.5, guidance_schedule="constant") == near(2.5, 2.5, 2.5, 2.5)
    assert read(guidance_scale=0.5) == near(0.5, 0.5, 0.5, 0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_given_tokens_never_change_and_every_hole_is_filled_once(dtype):
    full = draw_tokens([7, 5], 6)
    hole = torch.rand(6, 30, generator=torch.Generator().manual_seed(1)) < torch.linspace(0, 1, 6)[:, None]
    hole[0], hole[-1], hole[:, 1:5] = False, True, False  # the first complete, and a scale that all have
    given, state, logits, done = torch.where(hole[..., None], UNKNOWN, full), torch.get_rng_state(), BranchLogits(dtype), []
    before = given.clone()
    options = NextScaleSampling(guidance_scale=3.0, final_temperature=0.0)
    counting = lambda step, steps, tokens: done.append((step, steps)) or tokens  # noqa: E731
    samples = sample_next_scale(logits, given, SCALES, options, range(6), trace=True, progress=counting)
    assert given.equal(before) and torch.get_rng_state().equal(state)
    assert [i for i, _ in logits.calls] == [0, 5, 14] and done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for grid, end in zip(samples.trace, (1, 5, 14, 30), strict=True):
        assert grid[~hole].equal(full[~hole])
        assert ((grid >= 0).all(-1) == (~hole | (torch.arange(30) < end))).all()
    assert samples.trace[-1].equal(samples.tokens) and (samples.tokens < torch.tensor([7, 5])).all()


def test_the_finest_tokens_have_no_influence_on_others(make):
    prior = make()
    given = torch.full((2, 30, 1), UNKNOWN)
    given[:, 20:25] = 4
    free, held = (prior.sample([1, 2], NextScaleSampling(), [5, 6], each).tokens for each in (None, given))
    assert held[:, 20:25].eq(4).all() and held[:, :20].equal(free[:, :20]) and held[:, 25:].equal(free[:, 25:])
    given[:] = UNKNOWN
    given[:, 0] = (free[:, 0] + 1) % 11
    assert not prior.sample([1, 2], NextScaleSampling(), [5, 6], given).tokens[:, 1:].equal(free[:, 1:])


def test_tokens_of_one_scale_are_refused_and_a_tokenizer_of_several_is_named(make):
    with pytest.raises(UserError, match="one of 4x4; train a tokenizer with quantizer=multi_scale") as caught:
        make(scales=[[4, 4]])
    assert "\n" not in str(caught.value)
