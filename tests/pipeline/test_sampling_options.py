"""Every option of every sampler can be given to a command and to an evaluation."""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields

import pytest

from eval.config import EvalConfig, Sampling
from eval.parts import sampling_options as evaluated
from pipeline.api import load_pipeline
from pipeline.core.config import load_config, to_dict
from pipeline.core.errors import UserError
from pipeline.core.sampler_options import KINDS
from pipeline.sampling_arguments import add_sampling_options, sampling_options
from stage2_prior.priors import PRIORS
from stage2_prior.sampling import make_options

GIVEN = {  # of each option a value that is not its default: what is written on a command line
    "guidance_scale": "2.5",
    "guidance_schedule": "power_cosine",
    "guidance_power": "2.0",
    "guidance_interval": "0.1 0.7",
    "temperature": "0.9",
    "final_temperature": "0.8",
    "top_k": "7",
    "top_p": "0.95",
    "steps": "3",
    "schedule": "linear",
    "order": "random",
    "choice_temperature": "1.5",
    "corrector_steps": "2",
    "corrector_share": "0.3",
    "corrector": "random",
    "lookahead": "4",
}


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_sampling_options(parser)
    return sampling_options(parser.parse_args(["--class", "0", *words]))


def flag(name):
    return f"--{name.replace('_', '-')}"


@pytest.mark.parametrize("kind", PRIORS)
def test_every_option_goes_on_a_command_line_and_in_an_evaluation(kind):
    names = [each.name for each in fields(PRIORS[kind].options_type)]
    words = [word for name in names for word in (flag(name), *GIVEN[name].split())]
    from_line = {name: value for name, value in parsed(*words).items() if value is not None and name != "brought"}
    written = {name: f"[{GIVEN[name].replace(' ', ', ')}]" if " " in GIVEN[name] else GIVEN[name] for name in names}
    config = load_config(EvalConfig, None, [f"{kind}.{name}={text}" for name, text in written.items()])
    from_config = {name: value for name, value in asdict(getattr(config, kind)).items() if value is not None}
    assert set(from_line) == set(from_config) == set(names)
    options, plain = make_options(PRIORS[kind].options_type, from_line), PRIORS[kind].options_type()
    assert all(getattr(options, name) != getattr(plain, name) for name in names)
    assert to_dict(options) == to_dict(make_options(PRIORS[kind].options_type, from_config))


def test_there_is_a_value_here_for_every_option():
    names = {each.name for kind in KINDS.values() for each in fields(kind)}
    assert set(GIVEN) == names == {each.name for each in fields(Sampling)}


def test_what_is_not_given_stays_as_it_is_and_the_old_names_hold():
    assert set(parsed().values()) == {None, True} and not parsed("--sampler-defaults")["brought"]
    assert parsed("--guidance", "3")["guidance_scale"] == 3.0 == parsed("--guidance-scale", "3")["guidance_scale"]


def test_a_misspelt_option_of_an_evaluation_gets_the_nearest():
    with pytest.raises(UserError, match=r"config.maskgit.corector: no such setting; did you mean corrector\?"):
        load_config(EvalConfig, None, ["maskgit.corector=random"])


def test_a_command_refuses_what_would_do_nothing(runs, commands):
    """The training of this run brought Halton's order."""
    shown = ("pipeline.sample", "--pipeline", runs.maskgit, "--class", "star", "--dry-run")
    refused = commands.run(*shown, "--choice-temperature", 99)
    assert refused.code == 2 and len(refused.error_lines) == 1
    assert "sampling.choice_temperature: 99.0 does nothing here; give order=confidence, or leave it out" in refused.err
    assert "choice_temperature=99.0" in commands.succeed(*shown, "--choice-temperature", 99, "--order", "confidence").out
    assert "guidance_interval=[0.2, 0.6]" in commands.succeed(*shown, "--guidance-interval", 0.2, 0.6, "--guidance", 2).out
    # what a prior brings for an order that is replaced now is no mistake
    (runs.maskgit / "prior/sampling.json").write_text('{"choice_temperature": 2.0}')
    assert "choice_temperature=2.0" in commands.succeed(*shown, "--order", "halton").out


def test_an_evaluation_refuses_what_would_do_nothing(runs):
    model = load_pipeline(runs.maskgit)
    config = load_config(EvalConfig, None, ["maskgit.choice_temperature=2"])
    with pytest.raises(UserError, match=r"choice_temperature: 2\.0 does nothing here"):
        evaluated(model, config)
    assert evaluated(model, config, brought=False).choice_temperature == 2.0  # in the sampler's own order, confidence
    config = load_config(EvalConfig, None, ["maskgit.guidance_schedule=power_cosine", "maskgit.guidance_power=2"])
    assert evaluated(model, config, guidance_scale=1.0).guidance_power == 2.0  # a point of a curve


def test_looking_ahead_on_a_command_line_changes_no_image(runs, commands, tmp_path):
    pictures = [tmp_path / f"{ahead}.png" for ahead in (1, 4)]
    for ahead, out in zip((1, 4), pictures, strict=True):
        commands.succeed("pipeline.sample", "--pipeline", runs.ar, "--class", 3, "--lookahead", ahead, "--out", out)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
