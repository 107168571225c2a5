"""The command eval.benchmark.measure on a tiny finished chain: what it writes and skips, and what other tools say of it."""

import json

import numpy as np
import pytest
import torch_fidelity
from PIL import Image

from eval.benchmark.generation import choose_guidance
from eval.extractors import LITE0_IN_FIDELITY
from eval.results import read_result
from pipeline.core.files import read_json

SETTINGS = """
name: tiny
stage1: configs/stage1/demo.yaml
stage2: {maskgit: configs/stage2/maskgit_demo.yaml, ar: configs/stage2/ar_demo.yaml}
eval: configs/eval/demo.yaml
eval_settings: [reference_images=60, kid_subsets=3, shown_images=8, shown_per_group=2, maskgit.steps=3]
quantizers: [lgq]
bits: [4]
seeds: [0]
guidance: {maskgit: [1, 3], ar: [1, 2]}
curve_images: 40
images: 48
perturbations: [0.1, 0.3, 0.9]
"""
JOB = {"method": "lgq", "label": "lgq", "bits": 4, "seed": 0}
DISTANCES = {"fd", "kid", "is", "precision", "recall", "density", "coverage"}


@pytest.fixture(scope="module")
def measured(commands, chain, tmp_path_factory):
    """The root of three results, and a function that measures: kind, run, more arguments."""
    root = tmp_path_factory.mktemp("measured")
    (root / "tiny.yaml").write_text(SETTINGS)
    sources = {"quality": "--tokenizer", "generation": "--prior", "yardstick": "--data-from"}

    def run(kind, source, *more, out=None):
        arguments = [sources[kind], source, "--out", root / (out or kind), "--config", root / "tiny.yaml", *more]
        return commands.run("eval.benchmark.measure", kind, *arguments, environment={"LGQ_CACHE": str(root / "cache")})

    for kind, source in (("yardstick", chain.tokenizer), ("quality", chain.tokenizer), ("generation", chain.maskgit)):
        job = JOB | ({"prior": "maskgit"} if kind == "generation" else {})
        done = run(kind, source, "--job", json.dumps(job), "--save-images", root / "images" / kind)
        assert done.code == 0, done.err
    return root, run


def results(root):
    return {kind: read_result(root / kind / "result.json") for kind in ("yardstick", "quality", "generation")}


def test_a_result_says_what_it_stands_on(measured, chain):
    root, _ = measured
    for kind, result in results(root).items():
        assert result.part == {"quality": "tokenizer"}.get(kind, kind)
        assert result.inputs["job"]["kind"] == kind and result.inputs["job"]["method"] == "lgq"
        assert all((root / kind / name).exists() for name in result.pictures.values())
        assert all("FID" not in metric.label for metric in result.metrics.values())
    wanted = read_json(chain.ar / "prior" / "tokens.json")["tokenizer_sha256"]
    assert results(root)["quality"].inputs["tokenizer_sha256"] == wanted


def test_a_tokenizer_is_measured_from_all_sides(measured):
    root, _ = measured
    found = results(root)["quality"]
    metrics, details = found.metrics, found.details
    wanted = {"fd", "decoded_fd", "pfd", "pfd_increase", "psnr", "ssim", "perceptual", "codes_used", "perplexity"}
    assert set(metrics) == wanted | {"bits_per_token", "bits_per_image", "nominal_bits_per_image"}
    assert metrics["nominal_bits_per_image"].value == 64
    curve = details["pfd"]
    assert [point["share"] for point in curve] == [0, 0.1, 0.3, 0.9]
    assert curve[0]["fd"] == pytest.approx(metrics["fd"].value, rel=1e-6)  # the same images, since there are only 48
    assert curve[2]["fd"] == metrics["pfd"].value and "30 % of the positions" in metrics["pfd"].label
    increase = metrics["pfd_increase"]
    assert increase.value == pytest.approx(curve[2]["fd"] - curve[0]["fd"]) and increase.label != metrics["pfd"].label
    assert {curve[0]["n"], metrics["pfd"].n, increase.n} == {48}
    cost = details["cost"]
    assert 0 < cost["quantizer_parameters"] < cost["parameters"] and cost["flops_per_image"] > 1e5
    assert cost["train_seconds"] is None  # nobody recorded it
    assert len(details["geometry"]["codes"]) == 16 == len(details["geometry"]["count"])
    assert sum(details["geometry"]["count"]) == 48 * 16 == sum(details["usage"]["count"])
    first, last = details["training"][0], details["training"][-1]
    assert last["images"] == 320 and 0 < last["purity"] <= 1
    assert first["temperature"] == pytest.approx(0.05 ** (24 / 320), rel=1e-4)  # LGQ's geometric schedule
    assert last["temperature"] == pytest.approx(0.05, rel=1e-4)


def test_a_prior_is_measured_at_the_scale_that_other_seeds_chose(measured):
    root, _ = measured
    found = results(root)["generation"]
    metrics, details = found.metrics, found.details
    assert DISTANCES | {"prior_bits", "prior_bits_per_image", "memorised"} <= set(metrics)
    assert metrics["prior_bits_per_image"].value == pytest.approx(16 * metrics["prior_bits"].value)
    assert metrics["memorised"].floor == 0.02 and 0 <= metrics["memorised"].value <= 1
    assert metrics["prior_bits"].better == metrics["prior_bits_per_image"].better == "neither"
    curve = details["curve"]
    assert [point["guidance"] for point in curve] == [1, 3]
    assert details["chosen"] == min(curve, key=lambda point: point["kid"])["guidance"]
    assert details["sampling"]["guidance_scale"] == details["chosen"] and details["sampling"]["steps"] == 3
    assert metrics["fd"].value != min(point["fd"] for point in curve)


def test_yardsticks_are_ordered(measured):
    root, _ = measured
    metrics = results(root)["yardstick"].metrics
    assert {f"{name}_{metric}" for name in ("real", "validation", "blurred") for metric in DISTANCES} <= set(metrics)
    assert metrics["real_fd"].value < metrics["blurred_fd"].value
    assert metrics["blurred_memorised"].value > 0.5  # they are copies of training images


def test_measures_of_single_images_and_of_moments_say_what_they_are_without_each_block(measured):
    root, _ = measured
    of = {
        "quality": ("fd", "decoded_fd", "pfd", "pfd_increase", "psnr", "ssim", "perceptual"),
        "generation": ("fd", "kid", "density", "prior_bits", "prior_bits_per_image", "memorised"),
    }
    for kind, names in of.items():
        for name in names:
            metric = results(root)[kind].metrics[name]
            values = np.array(metric.without_block)
            assert metric.standard_error is not None, name
            assert len(values) == 20 and abs(values.mean() - metric.value) <= 3 * metric.standard_error, name
            jackknife = np.sqrt(19 / 20 * np.square(values - values.mean()).sum())
            assert metric.standard_error == pytest.approx(jackknife, rel=1e-3, abs=1e-6 * abs(metric.value)), name


def test_a_limit_of_too_few_images_is_not_reported(measured):
    root, _ = measured
    assert not any("fd_infinity" in name for result in results(root).values() for name in result.metrics)


def test_sheets_are_small_and_whole(measured):
    root, _ = measured
    for kind, result in results(root).items():
        for name, file in result.pictures.items():
            if kind != "yardstick":
                assert file.endswith(".webp") and (root / kind / file).stat().st_size < 20_000
                with Image.open(root / kind / file) as sheet:
                    assert sheet.format == "WEBP" and sheet.width % 16 == sheet.height % 16 == 0, name


def test_guidance_is_chosen_on_the_parabola_more_surely_than_by_the_smallest_distance():
    scales = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    true = (np.log(scales) - np.log(2.0)) ** 2
    rng = np.random.default_rng(0)
    curves = true + 0.15 * rng.normal(size=(400, len(scales)))
    chosen = np.mean([choose_guidance(scales, curve) == 2.0 for curve in curves])
    smallest = np.mean(curves.argmin(1) == 2)
    assert chosen > smallest + 0.1
    assert choose_guidance((1.0, 2.0, 3.0), (0.3, 0.1, 0.2)) == 2.0  # three points are on their parabola
    assert choose_guidance((1.0, 2.0), (0.3, 0.1)) == 2.0 and choose_guidance((3.0,), (0.3,)) == 3.0


def test_the_numbers_are_torch_fidelitys_of_the_saved_images(measured):
    root, _ = measured
    for kind, options in (("quality", {}), ("generation", {"kid": True, "prc": True, "prc_neighborhood": 3})):
        images = root / "images" / kind
        ours = results(root)[kind].metrics
        theirs = torch_fidelity.calculate_metrics(
            input1=str(images / "images"),
            input2=str(images / "reference"),
            fid=True,
            **options,
            kid_subsets=3,
            kid_subset_size=48,
            feature_extractor=LITE0_IN_FIDELITY,
            cuda=False,
            cache=False,
            save_cpu_ram=True,
            verbose=False,
        )
        names = {"fd": "frechet_inception_distance", "kid": "kernel_inception_distance_mean"}
        names |= {name: name for name in ("precision", "recall")}
        compared = [name for name, key in names.items() if key in theirs]
        assert len(compared) == (4 if options else 1)
        for name in compared:
            assert ours[name].value == pytest.approx(theirs[names[name]], rel=1e-3), name


def test_a_finished_result_is_left_alone_and_another_setting_is_measured(measured, chain):
    root, run = measured
    before = (root / "quality" / "result.json").read_bytes()
    again = run("quality", chain.tokenizer, "--job", json.dumps(JOB))
    assert "finished before" in again.out
    assert (root / "quality" / "result.json").read_bytes() == before


def test_bad_input_is_one_line_and_exit_code_2(measured, chain, tmp_path):
    _, run = measured
    for words, arguments in (
        ("no such run", ("quality", tmp_path / "nowhere")),
        ("no scales for x", ("generation", chain.ar, "--job", '{"prior": "x"}')),
    ):
        result = run(*arguments, out="bad")
        assert result.code == 2 and len(result.error_lines) == 1 and words in result.err, result.err


def test_dry_run_writes_nothing(measured, chain):
    root, run = measured
    assert "images=48" in run("generation", chain.ar, "--dry-run", out="dry").out
    assert not (root / "dry").exists()
