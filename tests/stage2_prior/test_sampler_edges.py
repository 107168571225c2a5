"""What every sampler does at its edges: no sample at all, tokens however they lie in memory, logits that are no numbers."""

from __future__ import annotations

import pytest
import torch

from pipeline.core.errors import UserError
from stage2_prior.logits import TensorLogits
from stage2_prior.samplers import sample_maskgit
from stage2_prior.sampling import UNKNOWN, MaskGITSampling

SAMPLERS = {
    "maskgit": ("maskgit", {}, {}),
    "raster": ("ar", {}, {"lookahead": 3}),
    "any order": ("ar", {"random_until": 1.0, "raster_from": 1.0}, {"steps": 4}),
    "next scale": ("var", {}, {}),
}


@pytest.fixture(params=SAMPLERS)
def prior_and_options(make_prior, request):
    """A prior of each sampler, of two indices a token, and options."""
    name, trained, options = SAMPLERS[request.param]
    prior = make_prior(name, sizes=[7, 5], **trained)
    return prior, prior.options_type(guidance_scale=2.0, **options)


def scattered(tokens):
    """The same tokens, neighbours in memory far from each other."""
    return tokens.transpose(0, 1).contiguous().transpose(0, 1)


def test_no_label_gives_no_sample(prior_and_options):
    (prior, options), calls = prior_and_options, []
    for given in (None, torch.empty(0, 16, 2, dtype=torch.long)):
        samples = prior.sample([], options, [], given, trace=True, progress=lambda *told: calls.append(told))
        assert samples.tokens.shape == (0, 16, 2) and samples.trace == calls == []


def test_tokens_may_lie_in_memory_in_any_way(prior_and_options):
    prior, options = prior_and_options
    given = torch.full((3, 16, 2), UNKNOWN)
    given[1, 2:9] = 3
    request = ([0, 3, 4], options, [1, 2, 3])
    plain = prior.sample(*request, given).tokens
    assert prior.sample(*request, scattered(given)).tokens.equal(plain)
    assert prior.sample(*request, given, progress=lambda done, steps, tokens: scattered(tokens)).tokens.equal(plain)


def test_given_tokens_are_not_what_comes_back(prior_and_options):
    prior, options = prior_and_options
    given = torch.ones(2, 16, 2, dtype=torch.long)
    prior.sample([0, 1], options, [0, 1], given).tokens.zero_()
    assert given.eq(1).all()


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf])
@pytest.mark.parametrize("cut", [{}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5}])
def test_logits_that_are_no_numbers_are_one_line(prior_and_options, spoilt, cut):
    prior, _ = prior_and_options
    with torch.no_grad():
        prior.codes.biases[0][4] = spoilt
    with pytest.raises(UserError, match="the prior's logits are not finite; ") as caught:
        prior.sample([0, 3], prior.options_type(**cut), [1, 2])
    assert "\n" not in str(caught.value)


def test_a_code_may_be_impossible_as_long_as_one_is_not():
    def logits(tokens, masked, positions, rows, branches):
        return TensorLogits([torch.tensor([-torch.inf, 0.0, -torch.inf]).expand(*positions.shape, -1)])

    nothing = torch.full((2, 4, 1), UNKNOWN)
    assert sample_maskgit(logits, nothing, ((2, 2),), MaskGITSampling(), [0, 1]).tokens.eq(1).all()


def test_what_is_no_whole_number_is_not_cut_off(prior_and_options):
    prior, options = prior_and_options
    with pytest.raises(UserError, match=r"class labels \[1.7\]; give whole numbers"):
        prior.sample([1.7], options, [0])
    with pytest.raises(UserError, match=r"given tokens of torch.float32; give whole numbers"):
        prior.sample([1], options, [0], torch.zeros(1, 16, 2))


@pytest.mark.parametrize("cast", ["weights", "autocast"])
def test_in_bfloat16_too_an_image_is_the_same_alone_and_in_a_batch(make_prior, cast):
    """At a width where matrix libraries take the number of rows into account."""
    prior = make_prior("maskgit", sizes=[64], scales=[[8, 8]], width=512, heads=8)
    prior = prior.to(torch.bfloat16) if cast == "weights" else prior
    options = prior.options_type(steps=4, guidance_scale=2.0)
    with torch.autocast("cpu", torch.bfloat16, enabled=cast == "autocast"):
        together = prior.sample([0, 1, 2, 3, 4], options, range(5)).tokens
        assert prior.sample([3], options, [3]).tokens.equal(together[3:4])
