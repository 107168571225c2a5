"""The comparison is fair: what may differ differs, nothing else does, and a planted unfairness is found."""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from eval.benchmark import contract as contracts
from eval.benchmark.benchmark import BenchmarkRun
from eval.benchmark.config import BenchmarkConfig
from eval.benchmark.contract import Settings, contract, text, unequal, write_contract
from eval.benchmark.jobs import JobFolder, State, differences
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


def measured(folder: JobFolder) -> JobFolder:
    """As a measurement leaves it."""
    folder.prepare()
    (folder.out / "result.json").write_text(json.dumps({"inputs": {}}))
    return folder


def test_what_other_code_measured_is_measured_again_and_what_it_trained_is_kept(settings, tmp_path, monkeypatch):
    jobs = all_jobs(settings.config)

    def folder(id: str) -> JobFolder:
        return JobFolder(jobs[id], settings.inputs(jobs[id]), tmp_path / "runs", tmp_path / "results")

    quality, generation = "quality/lgq-8b-s0", "generation/lgq-8b-s0-maskgit"
    for id in ("yardstick", quality, generation):
        assert measured(folder(id)).done()
    monkeypatch.setitem(contracts.VERSIONS, "quality", 3)
    assert folder(quality).outdated() == ["version was 2, now 3"] and not folder(quality).done()
    assert folder("yardstick").done() and folder(generation).done()
    monkeypatch.setattr(contracts, "FEATURES_VERSION", 5)
    assert not folder("yardstick").done() and not folder(generation).done()
    # before there were versions
    told = folder(generation).out / "job.json"
    old = json.loads(told.read_text())
    del old["inputs"]["version"], old["inputs"]["features_version"]
    told.write_text(json.dumps(old))
    assert folder(generation).outdated() == ["features_version was 0, now 5", "version was 0, now 2"]
    folder(generation).prepare()
    assert not (told.parent / "result.json").exists()
    for kind in ("tokenizer/lgq-8b-s0", "tokens/lgq-8b-s0", "prior/lgq-8b-s0-maskgit"):
        inputs = settings.inputs(jobs[kind])
        assert not {"version", "features_version", "data_fingerprint"} & inputs.keys()


def test_measurements_of_images_that_have_changed_are_made_again(settings, tmp_path):
    job = all_jobs(settings.config)["generation/lgq-8b-s0-maskgit"]
    folder = JobFolder(job, settings.inputs(job), tmp_path / "runs", tmp_path / "results")
    training = tmp_path / "runs/tokenizer/lgq-8b-s0/tokenizer/training.json"
    training.parent.mkdir(parents=True)
    training.write_text(json.dumps({"data_fingerprint": "f00d"}))
    assert measured(folder).done() and (folder.measured() or {})["data_fingerprint"] == "f00d"
    training.write_text(json.dumps({"data_fingerprint": "beef"}))
    assert folder.outdated() == ["data_fingerprint was 'f00d', now 'beef'"]
    training.unlink()  # runs/ is gone: the result stands for itself
    assert folder.done() and folder.fingerprint() == "f00d"


def test_a_state_of_older_or_newer_code_is_read_and_a_damaged_one_is_said(settings, tmp_path):
    job = all_jobs(settings.config)["tokenizer/lgq-8b-s0"]
    folder = JobFolder(job, settings.inputs(job), tmp_path, tmp_path)
    file, marker = folder.path / "job/state.json", folder.path / "tokenizer/config.json"
    for path in (file, marker):
        path.parent.mkdir(parents=True)
    marker.touch()
    old = {"state": "done", "attempts": 1, "seconds": 83.4, "threads": 1, "device": "", "error": "", "inputs": folder.inputs}
    for values in (old, old | {"from_the_future": 1}):
        file.write_text(json.dumps(values))
        assert folder.done() and folder.obstacle(folder.state()) == "" and folder.state().seconds == 83.4
    file.write_text(json.dumps(old | {"inputs": {"stage1": {"images": 3}}}))
    assert not folder.done() and "was made with other settings (stage1.images was 3" in folder.obstacle(folder.state())
    for damaged in ("{", "[]", '{"attempts": "many"}', '{"inputs": 3}'):
        file.write_text(damaged)
        assert not folder.done() and f"{file}: damaged; delete this file" in folder.obstacle(folder.state())
    assert folder.obstacle(State()) == ""


def run(tmp_path, *settings: str) -> BenchmarkRun:
    return BenchmarkRun(load_config(BenchmarkConfig, SMOKE, settings), tmp_path / "runs", tmp_path / "results", 1, 1)


def test_runs_of_a_part_add_to_the_contract_and_never_shrink_it(tmp_path):
    parts = ["seeds=[0]", "quantizers=[fsq]"], ["seeds=[1]", "quantizers=[fsq]"], ["quantizers=[lgq]", "bits=[6]"]
    path = tmp_path / "results/smoke/contract.json"
    with ThreadPoolExecutor(3) as threads:  # each by a launcher of its own, at the same time
        list(threads.map(BenchmarkRun.write, [run(tmp_path, *part) for part in parts]))
    together = json.loads(path.read_text())
    assert together["seeds"] == [0, 1] and [row["label"] for row in together["rows"]] == ["fsq", "lgq"]
    assert [id for id in together["measurements"] if id.startswith("quality")] == [
        *("quality/fsq-5b-s0", "quality/fsq-5b-s1", "quality/lgq-6b-s0")
    ]
    run(tmp_path, *parts[1]).write()
    assert json.loads(path.read_text()) == together
    other = run(tmp_path, *parts[1], "curve_images=50")
    with pytest.raises(
        UserError, match=r"curve_images was 40, now 50.* 4 measurements .*generation/fsq-5b-s0-maskgit.*name="
    ) as caught:
        other.check()
    assert "\n" not in str(caught.value) and "Nothing can be started" in other.describe()
    assert json.loads(path.read_text()) == together
    everything = run(tmp_path, "seeds=[0,1]", "bits=[5,6]", "curve_images=50")
    everything.check()
    everything.write()  # measures all of it again
    assert json.loads(path.read_text())["evaluation"]["curve_images"] == 50


def test_all_that_is_in_the_way_is_said_before_anything_starts(tmp_path):
    smoke = run(tmp_path)
    for id, images in (("tokenizer/lgq-5b-s0", "f00d"), ("tokenizer/fsq-5b-s0", "beef")):
        folder = smoke.folders[id]
        folder.write_state(State("done", inputs={"stage1": {"images": 3}}))
        (folder.path / "tokenizer").mkdir()
        (folder.path / "tokenizer/config.json").touch()
        (folder.path / "tokenizer/training.json").write_text(json.dumps({"data_fingerprint": images}))
    said = smoke.describe()
    for id in ("tokenizer/lgq-5b-s0", "tokenizer/fsq-5b-s0"):
        assert f"{smoke.folders[id].path}: was made with other settings (stage1.images was 3, now 160)" in said
    assert "made of different images (fingerprints f00d and beef)" in said
    with pytest.raises(UserError, match=r"nothing was started: .*other settings.* \(2 more above\)"):
        smoke.run()
    assert not list(tmp_path.rglob("lock.*"))
    for damaged in ("[]", "{"):
        (tmp_path / "results/smoke").mkdir(parents=True, exist_ok=True)
        (tmp_path / "results/smoke/contract.json").write_text(damaged)
        assert "contract.json" in smoke.describe().split("Nothing can be started")[1]
