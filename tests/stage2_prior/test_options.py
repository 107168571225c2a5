"""Options of samplers: the names and types they go by, and those that would do nothing."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from pipeline.core.errors import UserError
from pipeline.core.sampler_options import KINDS
from stage2_prior.priors import PRIORS
from stage2_prior.sampling import ARSampling, MaskGITSampling, NextScaleSampling, make_options


def test_every_option_of_every_prior_is_in_the_one_list():
    assert set(KINDS) == set(PRIORS)
    for name, prior in PRIORS.items():
        assert issubclass(prior.options_type, KINDS[name])
        assert [(each.name, each.default) for each in fields(prior.options_type)] == [
            (each.name, each.default) for each in fields(KINDS[name])
        ]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (MaskGITSampling, {"steps": 2.5}, "sampling.steps: 2.5; give a whole number"),
        (MaskGITSampling, {"steps": None}, "sampling.steps: None; give a whole number"),
        (MaskGITSampling, {"steps": True}, "sampling.steps: True; give a whole number"),
        (ARSampling, {"steps": 2.5}, "sampling.steps: 2.5; give a whole number, or leave it out"),
        (NextScaleSampling, {"top_k": 2.5}, "sampling.top_k: 2.5; give a whole number, or leave it out"),
        (NextScaleSampling, {"temperature": "warm"}, "sampling.temperature: 'warm'; give a number"),
        (ARSampling, {"order": 3}, "sampling.order: 3; give a name"),
        (ARSampling, {"guidance_interval": 0.3}, "sampling.guidance_interval: 0.3; give 0 <= from <= to <= 1"),
        (ARSampling, {"guidance_interval": ["a", 1]}, "sampling.guidance_interval: ['a', 1]; give 0 <= from <= to <= 1"),
        (MaskGITSampling, {"order": "hilton"}, "sampling.order: hilton; did you mean halton?"),
        (MaskGITSampling, {"corrector": "xyz"}, "sampling.corrector: xyz; choose one of confidence, random"),
        (
            MaskGITSampling,
            {"choice_tmp": 1},
            "choice_tmp: MaskGITSampling has no such option; did you mean choice_temperature?",
        ),
        (ARSampling, {"lookahed": 2}, "lookahed: ARSampling has no such option; did you mean lookahead?"),
    ],
)
def test_wrong_names_and_values_are_one_line_with_what_is_near(kind, options, message):
    with pytest.raises(UserError) as caught:
        make_options(kind, options)
    assert str(caught.value) == message


def test_numbers_of_numpy_are_numbers():
    options = make_options(MaskGITSampling, {"steps": np.int64(3), "temperature": np.float32(0.5), "guidance_interval": [0, 1]})
    assert options == MaskGITSampling(steps=3, temperature=0.5, guidance_interval=[0, 1])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("options", "asked", "remedy"),
    [
        (MaskGITSampling(order="halton", choice_temperature=2.0), "choice_temperature", "give order=confidence"),
        (MaskGITSampling(corrector="random"), "corrector", "give corrector_steps"),
        (MaskGITSampling(corrector_share=0.5), "corrector_share", "give corrector_steps"),
        (NextScaleSampling(guidance_scale=2.0, guidance_power=2.0), "guidance_power", "give guidance_schedule=power_cosine"),
        (ARSampling(schedule="linear"), "schedule", "give steps"),
    ],
)
def test_what_is_asked_for_and_does_nothing_is_refused_in_one_line(options, asked, remedy):
    value = getattr(options, asked)
    with pytest.raises(UserError) as caught:
        options.require_used(["guidance_scale", asked])
    assert str(caught.value) == f"sampling.{asked}: {value} does nothing here; {remedy}, or leave it out"
    options.require_used(["guidance_scale"])  # it is there, but nobody asked for it now


def test_what_does_something_or_is_the_default_is_not_refused():
    everything = [each.name for each in fields(MaskGITSampling)]
    MaskGITSampling(order="halton").require_used(everything)
    MaskGITSampling(choice_temperature=2.0, corrector_steps=1, corrector="random", corrector_share=0.5).require_used(everything)
    MaskGITSampling(guidance_schedule="power_cosine", guidance_power=2.0).require_used(everything)
    ARSampling(steps=4, schedule="linear").require_used([each.name for each in fields(ARSampling)])


def test_a_prior_that_takes_tokens_in_any_order_does_not_look_ahead(make_prior):
    prior = make_prior("ar", random_until=1.0, raster_from=1.0)
    with pytest.raises(UserError, match="lookahead: 8; goes with priors that ended in raster order only") as caught:
        prior.sample([0], ARSampling(lookahead=8), [0])
    assert "\n" not in str(caught.value)
    prior.sample([0], ARSampling(lookahead=1), [0])
