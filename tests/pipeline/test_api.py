from __future__ import annotations

import json
import os

import pytest

from pipeline import api
from pipeline.api import ImageGenerator, find_runs, load_pipeline, load_prior, load_tokenizer, prior_folder, tokenizer_folder
from pipeline.core.errors import UserError
from pipeline.core.snapshot import load_snapshot

WEIGHTS = api.WEIGHTS


def test_the_public_interface_is_whole():
    assert sorted(api.__all__) == api.__all__ and all(hasattr(api, name) for name in api.__all__)


def test_a_run_and_its_model_load_alike(chain):
    assert tokenizer_folder(chain.tokenizer) == tokenizer_folder(chain.tokenizer / "tokenizer") == chain.tokenizer / "tokenizer"
    assert prior_folder(chain.ar) == prior_folder(chain.ar / "prior") == chain.ar / "prior"
    tokenizer, prior = load_tokenizer(chain.tokenizer), load_prior(chain.ar)
    assert tokenizer.spec == prior.spec and not tokenizer.training and not prior.training
    generator = load_pipeline(chain.maskgit)
    assert isinstance(generator, ImageGenerator) and not generator.prior.training
    assert generator.config["class_names"][4] == "star"


def test_parts_of_other_runs_are_no_priors(chain):
    with pytest.raises(UserError, match=r"tokens: holds no prior; give the folder of a finished run of stage2_prior/train.py"):
        load_prior(chain.tokens)
    with pytest.raises(UserError, match=r"config.json: _class_name Tokenizer"):
        load_prior(chain.tokenizer / "tokenizer")


@pytest.mark.parametrize("part, load", [("tokenizer", load_tokenizer), ("ar", load_prior), ("ar", load_pipeline)])
@pytest.mark.parametrize("damage", ["empty", "truncated", "missing", "flipped header", "no configuration"])
def test_damage_is_named(runs, part, load, damage):
    (weights,) = (runs.root / part).glob(f"*/{WEIGHTS}")
    content = weights.read_bytes()
    if damage == "no configuration":
        (weights.parent / "config.json").write_text('{"_class_name":')
    elif damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes({"empty": b"", "truncated": content[:-9], "flipped header": b"\xff" + content[1:]}[damage])
    with pytest.raises(UserError, match=str(weights.parent)) as caught:
        load(runs.root / part)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_prior_does_not_speak_to_another_tokenizer(runs):
    (weights,) = runs.tokenizer.glob(f"tokenizer/{WEIGHTS}")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"is not the one that .*tokenize and train the prior again"):
        load_pipeline(runs.ar)


def test_specifications_that_differ_are_refused(chain, runs):
    config = runs.ar / "prior/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"image_size": [32, 32]}))
    with pytest.raises(UserError, match="use two that belong together"):
        ImageGenerator(load_tokenizer(chain.tokenizer), load_prior(runs.ar))


def test_runs_come_newest_first(runs):
    for age, run in enumerate([runs.ar, runs.maskgit]):
        os.utime(run / "prior/config.json", (1000 - age, 1000 - age))
    partial = runs.root / "deep/.prior.1.partial/prior"
    partial.mkdir(parents=True)
    (partial / "config.json").touch()
    assert find_runs(runs.root, "prior") == [runs.ar, runs.maskgit]
    os.utime(runs.maskgit / "prior/config.json", (2000, 2000))
    assert find_runs(runs.root, "prior") == [runs.maskgit, runs.ar]
    assert find_runs(runs.root, "tokenizer") == [runs.tokenizer] and find_runs(runs.root, "tokens") == [runs.tokens]
    assert find_runs(runs.root / "nothing", "prior") == []


def test_a_missing_run_gets_the_finished_ones(runs, monkeypatch):
    monkeypatch.chdir(runs.root.parent)
    with pytest.raises(UserError, match=r"runs/arr: no such run; finished ones are runs/"):
        load_prior("runs/arr")
    (runs.ar / "prior").rename(runs.root / "gone")
    with pytest.raises(UserError, match="runs/ar: this run has not finished"):
        load_pipeline("runs/ar")


def test_the_exported_weights_are_the_averaged_ones(chain):
    state = load_snapshot(max((chain.ar / "snapshots").iterdir()))
    prior = load_prior(chain.ar)
    for parameter, average in zip(prior.parameters(), state["ema"]["shadow_params"], strict=True):
        assert parameter.equal(average)
    assert any(not state["prior"][name].equal(value) for name, value in prior.state_dict().items())
