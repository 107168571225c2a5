"""Predictive sampling: the samples of one token at a time, in fewer passes."""

from __future__ import annotations

import pytest
import torch

from stage2_prior.autoregressive import StepwiseLogits
from stage2_prior.sampling import UNKNOWN, ARSampling
from stage2_prior.transformer import take

OPTIONS = [
    {},
    {"temperature": 0.0},
    {"guidance_scale": 2.0, "guidance_schedule": "linear", "final_temperature": 0.5},
    {"guidance_scale": 3.0, "guidance_interval": (0.2, 0.6)},
    {"guidance_scale": 1.5, "top_k": 4},
    {"top_p": 0.8, "temperature": 1.3},
]


def holes(b, d):
    """Samples of which nothing, something and everything is given."""
    given = torch.full((b, 16, d), UNKNOWN)
    given[1, 3:9], given[1, 12], given[2, :4], given[3], given[4, 15] = 2, 1, 3, 1, 4
    return given


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("sizes", [[11], [7, 5]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_samples_are_the_same_in_fewer_passes(make_prior, options, sizes, dtype):
    prior, labels, given = make_prior("ar", sizes=sizes).to(dtype), torch.tensor([0, 3, 4, 1, 2]), holes(5, len(sizes))

    def run(lookahead, rows=slice(None)):
        seeds = range(5)[rows]
        return prior.sample(labels[rows], ARSampling(**options, lookahead=lookahead), seeds, given[rows], trace=True)

    single = run(1)
    assert len(single.trace) == 16 and single.tokens[given != UNKNOWN].equal(given[given != UNKNOWN])
    for lookahead in (2, 3, 8, 16, 100):
        samples = run(lookahead)
        assert samples.tokens.equal(single.tokens)
        assert len(samples.trace) <= 15
        known = [(grid != UNKNOWN).all(-1).sum(1) for grid in samples.trace]
        for before, after in zip([(given != UNKNOWN).all(-1).sum(1), *known], known, strict=False):
            assert ((after > before) | (after == 16)).all()  # every sample gets on in every pass
    for row in range(5):
        assert run(8, slice(row, row + 1)).tokens.equal(single.tokens[row : row + 1])


def test_where_tokens_do_not_depend_on_each_other_a_whole_window_is_final_in_two_passes(make_prior):
    prior = make_prior("ar")
    with torch.no_grad():
        for block in prior.trunk.blocks:
            block.attention_out.weight.zero_()
        prior.codes.tables[0].zero_()
        prior.codes.biases[0].zero_()
    samples = prior.sample([0, 1], ARSampling(lookahead=4), [5, 6], trace=True)
    known = [int((grid[0] != UNKNOWN).sum()) for grid in samples.trace]
    # of places that are new only the first is sure of what is before it; the next pass finds all the others unchanged
    assert known == [1, 5, 6, 10, 11, 15, 16]


def test_logits_of_any_places_equal_a_full_pass_also_after_tokens_have_changed(make_prior):
    prior, labels = make_prior("ar", sizes=[7, 5]), torch.tensor([0, 3, 4])
    generator = torch.Generator().manual_seed(0)
    tokens = torch.stack([torch.randint(size, (3, 16), generator=generator) for size in (7, 5)], dim=-1)
    logits = StepwiseLogits(prior, labels)
    calls = [
        ([0, 0, 0], 3, (True, False)),
        ([1, 2, 3], 3, (True, False)),
        ([1, 5, 3], 2, (True,)),
        ([4, 6, 9], 5, (False,)),
        ([4, 12, 15], 8, (True, False)),
        ([16, 16, 15], 1, (True, False)),
    ]
    with torch.no_grad():
        for number, (start, m, branches) in enumerate(calls):
            at = torch.tensor(start)[:, None] + torch.arange(m)
            inside = (at < 16).flatten().repeat(len(branches)).nonzero()[:, 0]
            features = prior._features(tokens.repeat(len(branches), 1, 1), prior._branch_labels(labels, branches))
            expected = prior.codes.logits(take(features, at.clamp(max=15).repeat(len(branches), 1)))
            found = logits.causal(tokens, start, m, branches)
            for j in range(2):
                before = torch.zeros(len(inside), j, dtype=torch.long)
                torch.testing.assert_close(found(j, inside, before), expected(j, inside, before), atol=1e-5, rtol=1e-5)
            tokens = tokens.clone()
            changed = min(15, min(start) + 1 if number % 2 else 0)  # a guess, or even a token long known
            tokens[:, changed] = (tokens[:, changed] + 1) % 5
