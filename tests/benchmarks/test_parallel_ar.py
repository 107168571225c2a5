"""Several tokens a step: what they lose, what they gain, and rows that name what they were measured against."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import parallel_ar, sampling_sweep
from benchmarks.measuring import device_name
from benchmarks.parallel_ar import ROUNDS, describe, faster, loss, measure_speeds
from eval.config import EvalConfig
from pipeline.api import ImageGenerator
from pipeline.core.files import read_json, write_json
from stage1_tokenizer.backbone import Backbone
from stage1_tokenizer.tokenizer import Tokenizer
from stage2_prior.priors import build_prior


@pytest.fixture
def runs(monkeypatch):
    """Untrained pipelines of 16 tokens in place of two runs, in raster and in random order."""
    torch.manual_seed(0)
    backbone = Backbone(patch=4, channels=(16,), layers=1, attention=False)
    tokenizer = Tokenizer.create(16, backbone, {"name": "fsq", "levels": [4, 4]}).eval()
    small = {"num_classes": 3, "depth": 1, "width": 32, "heads": 2, "dropout": 0.0}
    orders = {"plain": {}, "parallel": {"random_until": 1.0, "raster_from": 1.0}}
    priors = {name: build_prior("ar", **tokenizer.spec.to_dict(), **small, **more).eval() for name, more in orders.items()}
    models = {name: ImageGenerator(tokenizer, prior) for name, prior in priors.items()}
    for module in (parallel_ar, sampling_sweep):
        monkeypatch.setattr(module, "load_pipeline", lambda run: models[run.name])
        monkeypatch.setattr(module, "weights_sha256", lambda run: f"sha256 of {run}")
        monkeypatch.setattr(module, "prior_folder", Path)
    return models


def test_what_a_parallel_prior_loses_is_a_difference_with_the_errors_of_both_sides():
    plain = {"fd": [200.0, 3.0], "kid": [0.10, 0.03]}
    found = loss({"changes": {"order": "halton"}, "fd": [210.0, 4.0], "kid": [0.08, 0.04]}, plain, 8)
    assert (found["order"], found["tokens_per_step"]) == ("halton", 8)
    assert found["fd"] == pytest.approx([10.0, 5.0]) and found["kid"] == pytest.approx([-0.02, 0.05])


def test_speed_stands_beside_one_token_a_pass_and_beside_the_lookahead():
    def entry(seconds, **inputs):
        return {"inputs": inputs, "seconds_per_image": seconds}

    speeds = [entry(0.8, batch=1, lookahead=1), entry(0.4, batch=1, lookahead=8), entry(0.03, batch=128, lookahead=1)]
    speeds += [entry(0.1, batch=1, tokens_per_step=8), entry(0.01, batch=128, tokens_per_step=8)]
    found = faster(speeds, 8)
    assert found[0] == {"batch": 1, "seconds_per_image": 0.1, "times_plain": 8.0, "lookahead": 8, "times_ahead": 4.0}
    assert found[1] == {"batch": 128, "seconds_per_image": 0.01, "times_plain": 3.0} and faster(speeds, 16) == []
    line = describe({"order": "halton", "tokens_per_step": 8, "fd": [54.9, 3.9], "kid": [0.05, 0.01], "speed": found})
    assert "fd +54.9 ± 3.9" in line and "8 times as fast (4 with lookahead 8) by 1" in line and "3 times as fast by 128" in line


def test_speeds_of_the_same_weights_and_device_are_measured_once(runs, tmp_path, monkeypatch):
    out, config = tmp_path / "out.json", EvalConfig(batch_size=2)
    write_json(out, {"rows": ["old"], "reference": "of old rows"})
    first = measure_speeds(Path("plain"), Path("parallel"), config, out)
    inputs = [entry["inputs"] for entry in first]
    assert [(each["batch"], each["lookahead"]) for each in inputs if "lookahead" in each] == [(1, 1), (1, 8), (2, 1), (2, 8)]
    steps = [(each["batch"], each["tokens_per_step"], each["steps"]) for each in inputs if "tokens_per_step" in each]
    assert steps == [(batch, n, 16 // n) for batch in (1, 2) for n in parallel_ar.AT_ONCE]
    assert all(0 < entry["fastest"] <= entry["seconds_per_image"] <= entry["slowest"] for entry in first) and ROUNDS % 2
    assert {each["device"] for each in inputs} == {device_name("cpu")}
    assert measure_speeds(Path("plain"), Path("parallel"), config, out) == first
    monkeypatch.setattr(parallel_ar, "device_name", lambda device: "abacus")
    assert measure_speeds(Path("plain"), Path("parallel"), config, out) != first
    result = read_json(out)
    assert len(result["speeds"]) == 2 * len(first) and (result["rows"], result["reference"]) == (["old"], "of old rows")


def test_new_rows_name_their_reference_and_the_priors_training_and_old_ones_are_found(runs, tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    write_json(tmp_path / "plain/training.json", {"config": {"images": 320}})
    monkeypatch.setattr(sampling_sweep, "prior_folder", lambda run: tmp_path / run)
    monkeypatch.setattr(sampling_sweep, "tokenizer_folder", lambda run: run)
    monkeypatch.setattr(sampling_sweep, "measure", lambda *_: {name: [1.0, None] for name in sampling_sweep.SHOWN} | SPEED)

    def rows(seed, plans):
        judge = SimpleNamespace(config=EvalConfig(seed=seed), reference=SimpleNamespace(describe=lambda: {"seed": seed}))
        return sampling_sweep.measure_all(judge, Path("tokenizer"), Path("plain"), plans, out)  # pyright: ignore[reportArgumentType]

    (old,) = rows(0, [{}])
    assert old["reference"] == {"seed": 0} and old["training_images"] == 320
    del old["reference"], old["training_images"]
    write_json(out, {"rows": [old], "reference": {"seed": 0}})
    assert rows(0, [{}]) == [old]
    (new,) = rows(1, [{"temperature": 0.9}])
    assert new["reference"] == {"seed": 1} and new["training_images"] == 320
    assert read_json(out)["reference"] == {"seed": 0}, "the file's own is of the rows without"
    assert [row.get("training_images") for row in read_json(out)["rows"]] == [None, 320]


SPEED = {"images_per_second": 1.0}
