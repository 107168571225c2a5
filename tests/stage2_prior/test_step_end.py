"""What a sampler tells after every step, and what it does with the answer."""

from __future__ import annotations

import pytest
import torch

from stage2_prior.autoregressive import AutoregressivePrior
from stage2_prior.priors import PRIORS
from stage2_prior.sampling import UNKNOWN


@pytest.fixture(params=list(PRIORS))
def prior(make_prior, request):
    return make_prior(request.param, sizes=[7, 5])


def sample(prior, progress=None, given=None, **options):
    options = prior.options_type(**options)
    return prior.sample([1, 4], options, [0, 1], given, trace=True, progress=progress)


def test_looking_on_changes_nothing_and_sees_what_the_trace_sees(prior):
    seen, steps = [], []

    def look(done, of, tokens):
        seen.append(tokens)  # and keeps it: no later step writes into it
        steps.append((done, of))
        return tokens

    samples = sample(prior, look)
    assert samples.tokens.equal(sample(prior).tokens)
    done, of = zip(*steps, strict=True)
    assert set(of) == {done[-1]} and sorted({*done}) == list(done) and done[0] >= 1
    assert len(seen) <= of[0] and (isinstance(prior, AutoregressivePrior) or len(seen) == of[0])
    assert all(a.equal(b) for a, b in zip(seen, samples.trace, strict=True))


def test_what_is_written_in_place_reaches_neither_the_trace_nor_earlier_steps(prior):
    def spoil(done, of, tokens):
        kept = tokens.clone()
        tokens.fill_(1)
        return kept

    plain, spoilt = sample(prior), sample(prior, spoil)
    assert spoilt.tokens.equal(plain.tokens)
    assert all(a.equal(b) for a, b in zip(spoilt.trace, plain.trace, strict=True))


def test_what_is_changed_is_what_the_rest_is_drawn_from(prior):
    calls = []

    def change(done, of, tokens):
        calls.append(done)
        return torch.where(tokens == UNKNOWN, tokens, 3) if len(calls) == 1 else tokens

    plain, changed = sample(prior), sample(prior, change)
    known = plain.trace[0] != UNKNOWN
    assert changed.tokens[known].eq(3).all() and not changed.tokens[~known].equal(plain.tokens[~known])


def test_stopping_leaves_the_rest_unknown_and_what_is_given_alone(prior):
    given = torch.full((2, 16, 2), UNKNOWN)
    given[:, 3:9] = 2
    stopped = sample(prior, lambda done, of, tokens: None if done >= min(5, of - 1) else tokens, given)
    whole = sample(prior, given=given)
    known = stopped.tokens != UNKNOWN
    assert stopped.tokens[:, 3:9].eq(2).all() and (~known).any() and known.sum() > 2 * 6 * 2
    assert stopped.tokens[known].equal(whole.tokens[known])
    assert not (sample(prior, lambda done, of, tokens: None if done == of else tokens).tokens == UNKNOWN).any()
