"""The comparison is fair: what may differ differs, nothing else does, and a planted unfairness is found."""

from __future__ import annotations

import copy
import json

import pytest

from eval.benchmark.config import BenchmarkConfig
from eval.benchmark.contract import Settings, contract, text, unequal, write_contract
from eval.benchmark.jobs import differences
from eval.benchmark.plan import all_jobs
from pipeline.api import Tokenizer, load_config
from pipeline.core.config import to_dict
from pipeline.core.errors import UserError

SMOKE = "configs/benchmark/smoke.yaml"


@pytest.fixture(scope="module")
def settings() -> Settings:
    quantizers = "quantizers=[lgq, fsq, residual, leech, {name: lgq, label: lgq_cold, options: {temperature_end: 0.01}}]"
    return Settings(load_config(BenchmarkConfig, SMOKE, [quantizers, "bits=[5,8]", "seeds=[0,1]"]))


def test_methods_spend_the_same_bits_or_say_that_they_have_others(settings):
    agreed = contract(settings)
    assert agreed.violations == []
    rows = {(row.label, row.bits): row for row in agreed.rows}
    assert rows["lgq", 8].bits_per_image == rows["residual", 8].bits_per_image == 16 * 8
    assert rows["fsq", 8].bits_per_image == pytest.approx(16 * 7.907, abs=0.01)  # [8, 6, 5] = 240 codes
    # no lattice has 32 vectors, and two indices of 5 bits in all are two of 6 codes: 5.17
    assert [(row.label, row.bits) for row in agreed.rows if not row.exact] == [("residual", 5), ("leech", 5)]
    page = text(agreed, 0.1)
    assert page.count("the bits it has") == 2 and "tuned for none" in page and '{"temperature_end": 0.01}' in page


def test_latents_are_normalised_for_all_but_levels_per_channel(settings):
    normalised = {row.label: row.normalised_latents for row in contract(settings).rows}
    assert normalised == {"lgq": True, "lgq_cold": True, "residual": True, "leech": True, "fsq": False}


def test_parameters_are_those_of_the_tokenizer_that_is_trained(settings):
    row = next(row for row in contract(settings).rows if row.label == "lgq" and row.bits == 8)
    config = settings.stage1["lgq", 8.0, 0]
    built = Tokenizer.create(config.image_size, config.backbone, config.quantizer)
    assert row.encoder + row.quantizer_parameters + row.decoder == sum(parameter.numel() for parameter in built.parameters())


@pytest.mark.parametrize(
    ("place", "value"),
    [("images", 161), ("optim.lr", 1e-3), ("loss.perceptual_weight", 0.2), ("data.train_per_class", 13), ("flip", False)],
)
def test_a_training_that_differs_in_more_is_found(settings, place, value):
    configs = {str(key): to_dict(config) for key, config in settings.stage1.items()}
    assert unequal(configs) == []
    culprit = list(configs)[3]
    part = configs[culprit]
    *path, last = place.split(".")
    for key in path:
        part = part[key]
    part[last] = value
    (found,) = unequal(configs)
    assert found.startswith(f"{culprit}: {place} is {value!r}")


def test_the_wrong_normalisation_is_found_and_stops_the_benchmark(settings):
    unfair = copy.copy(settings)
    unfair.stage1 = dict(settings.stage1)
    unfair.stage1["fsq", 8.0, 0] = load_config(
        type(settings.stage1["fsq", 8.0, 0]),
        settings.config.stage1,
        [*settings.tokenizer_settings(settings.config.quantizers[1], 8.0, 0), "backbone.latent_norm=true"],
    )
    agreed = contract(unfair)
    assert agreed.violations == ["fsq-8b-s0: backbone.latent_norm is not False, which its family needs"]
    assert "NOT FAIR: fsq-8b-s0" in text(agreed, 0.1)


def test_it_is_written_for_the_report(settings, tmp_path):
    path = write_contract(contract(settings), tmp_path)
    values = json.loads(path.read_text())
    assert values["measurements"] == sorted(job.id for job in all_jobs(settings.config).values() if job.is_measurement)
    assert values["stage1"]["image_size"] == 16 and "quantizer" not in values["stage1"] and values["tuning_trials"] == 0
    assert values["rows"][0]["quantizer"]["codebook_size"] == 32
    written = path.stat().st_mtime_ns
    assert write_contract(contract(settings), tmp_path).stat().st_mtime_ns == written  # the same again: left alone


def test_inputs_name_what_decides_a_job_and_nothing_else(settings):
    jobs = all_jobs(settings.config)
    inputs = {id: settings.inputs(job) for id, job in jobs.items()}
    assert "guidance" not in inputs["quality/lgq-8b-s0"] and "stage2" not in inputs["quality/lgq-8b-s0"]
    assert inputs["generation/lgq-8b-s0-maskgit"]["guidance"] == [1.0, 2.0]
    assert not {"run", "tokens", "workers", "snapshot_every"} & inputs["prior/lgq-8b-s0-maskgit"]["stage2"].keys()

    def changed(*overrides: str) -> set[str]:
        other = Settings(load_config(BenchmarkConfig, SMOKE, ["bits=[8]", *overrides]))
        theirs = {id: json.loads(json.dumps(other.inputs(job))) for id, job in all_jobs(other.config).items()}
        return {id.split("/")[0] for id in theirs if differences(json.loads(json.dumps(inputs[id])), theirs[id])}

    smoke = load_config(BenchmarkConfig, SMOKE)
    assert changed() == set()
    assert changed("curve_images=50") == {"generation"} and changed("perturbations=[0.5]") == {"quality"}
    faster = [*smoke.stage1_settings, "report_every=32", "workers=1"]
    assert changed(f"stage1_settings={json.dumps(faster)}") == set()
    longer = [*smoke.stage2_settings, "images=176"]
    assert changed(f"stage2_settings={json.dumps(longer)}") == {"prior", "generation"}
    cold = "quantizers=[{name: lgq, options: {temperature_end: 0.01}}]"
    assert changed(cold) == {"tokenizer", "tokens", "quality", "prior", "generation"}


def test_a_setting_that_came_with_the_code_is_no_difference():
    old = {"stage1": {"images": 3, "optim": {"lr": 1.0}}}
    assert differences(old, {"stage1": {"images": 3, "optim": {"lr": 1.0, "new": 5}, "other": {}}}) == []
    assert differences(old, {"stage1": {"images": 3, "optim": {"lr": 2.0}}}) == ["stage1.optim.lr was 1.0, now 2.0"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("quantizers=[lqg]", "did you mean lgq"),
        ("quantizers=[{name: lgq, options: {peak_wieght: 1}}]", "peak_wieght"),
        ("stage1_settings=[image_size=15]", "15 pixels cannot be cut"),
        ("eval_settings=[imags=3]", "did you mean images"),
        ("stage1=configs/stage1/demoo.yaml", "demo.yaml"),
    ],
)
def test_what_does_not_resolve_is_one_line_with_the_remedy(setting, said):
    with pytest.raises(UserError, match=said) as caught:
        contract(Settings(load_config(BenchmarkConfig, SMOKE, [setting])))
    assert "\n" not in str(caught.value)
