"""From result files to the verdict: the truth of simulations is found, unfair comparisons are refused, gaps are told."""

import json
from dataclasses import replace

import numpy as np
import pytest

from eval.benchmark import claims
from eval.benchmark.caveats import caveats
from eval.benchmark.collect import collect
from eval.benchmark.summary import summary
from eval.benchmark.verdict import judge
from eval.results import Metric
from pipeline.core.errors import UserError


@pytest.fixture(scope="module")
def folder(write_benchmark, tmp_path_factory):
    """Eight methods, one budget, both priors, three seeds."""
    return write_benchmark(tmp_path_factory.mktemp("benchmark") / "results", bits=(10,), pictures=False)


@pytest.fixture(scope="module")
def verdict(folder):
    return judge(collect(folder))


def test_the_true_order_is_found_and_near_methods_tie(verdict):
    for prior in ("ar", "maskgit"):
        (ranking,) = [r for r in verdict["rankings"] if r["metric"] == "fd" and r["prior"] == prior]
        order = [row["label"] for row in ranking["rows"]]
        groups = [{"lgq", "simvq", "fsq"}, {"vq_ema", "ibq"}, {"lfq", "bsq"}, {"half_codes"}]
        assert [set(order[:3]), set(order[3:5]), set(order[5:7]), set(order[7:])] == groups
        letters = {row["label"]: set(row["letters"]) for row in ranking["rows"]}
        assert letters["vq_ema"] & letters["ibq"]  # 1 apart, and the noise of a run is nearly 2
        assert not letters["lgq"] & letters["vq_ema"] and not letters["bsq"] & letters["half_codes"]
        assert len(ranking["pairs"]) == 28 and ranking["n"] == 2048 and ranking["retest"]["one_seed"] > 0.8


def test_a_predictor_that_was_made_of_the_truth_is_found_and_one_that_was_not_is_not(verdict):
    rows = {row["metric"]: row for row in verdict["predictors"] if row["prior"] is None}
    wanted = {"psnr", "ssim", "perceptual", "fd", "decoded_fd", "codes_used", "perplexity", "bits_per_token"}
    wanted |= {f"{name} {share}" for name in ("pfd", "pfd_increase") for share in (0.05, 0.1, 0.2, 0.4)}
    assert wanted | {"prior_bits_per_image"} <= rows.keys() and not {"pfd", "nominal_bits_per_image"} & rows.keys()
    assert rows["pfd 0.05"]["spearman"] > 0.9 and rows["pfd 0.05"]["p"] < 0.01 and rows["pfd 0.05"]["strata"] == 2
    assert rows["pfd 0.05"]["label"] == "pFD, 5 % of the tokens replaced" and rows["pfd 0.05"]["n"] == 8
    bits = rows["prior_bits_per_image"]  # no direction: the sign is that of the number itself
    assert bits["better"] == "neither" and bits["spearman"] > 0.9
    (answer,) = [answer for answer in verdict["answers"] if "cheap measures" in answer["question"]]
    assert "higher with more Prior bits per image" in answer["answer"]
    assert rows["bits_per_token"]["p"] > 0.05 and rows["bits_per_token"]["spearman_interval"][0] < 0


def test_claims_are_answered_whatever_the_answer(verdict, write_benchmark, few_methods, tmp_path):
    # of SimVQ's codes the paper claims nothing
    claimed = {("fsq", "difference"), ("simvq", "difference"), ("fsq", "ratio")}
    assert {(c["rival"], c["kind"]) for c in verdict["claims"]} == claimed
    assert all(c["status"] == "supported" for c in verdict["claims"])
    other = {
        **few_methods,
        "lgq": ("lgq", 180.0, 125.0, 0.9),
        "fsq": ("fsq", 186.0, 104.0, 0.97),
        "simvq": ("simvq", 1e3, 125.5, 0.96),
    }
    found = judge(collect(write_benchmark(tmp_path, other, (10,), priors=(), pictures=False)))
    status = {(c["rival"], c["kind"]): c["status"] for c in found["claims"]}
    assert status["fsq", "difference"] == status["fsq", "ratio"] == "contradicted"
    assert status["simvq", "difference"] == "inconclusive"
    answers = {answer["question"]: answer["status"] for answer in found["answers"]}
    assert answers["Does lgq reconstruct better than fsq and simvq at 10 bits per position and 32 pixels?"] == "partly"
    assert answers["Does lgq use about half as many codes as fsq at 10 bits per position and 32 pixels?"] == "contradicted"


def test_two_seeds_of_one_method_tie(write_benchmark, few_methods, tmp_path):
    twins = {"a": ("vq", 200.0, 100.0, 0.7), "b": ("vq", 200.0, 100.0, 0.7), "worse": ("vq", 260.0, 150.0, 0.3)}
    found = judge(collect(write_benchmark(tmp_path, twins, (10,), pictures=False)))
    for ranking in (r for r in found["rankings"] if r["metric"] == "fd"):
        assert {row["label"] for row in ranking["rows"] if row["best"]} == {"a", "b"}
    assert found["predictors"] == []  # three methods are no correlation


def test_more_bits_are_found_to_help(write_benchmark, few_methods, tmp_path):
    found = judge(collect(write_benchmark(tmp_path, few_methods, (8, 10), priors=("ar",), pictures=False)))
    rows = [row for row in found["budgets"] if row["prior"] == "ar"]
    assert [row["label"] for row in rows] == sorted(few_methods)
    assert all(row["low"] < -30 < row["high"] and row["holm"] < 0.05 for row in rows)  # the simulation adds 15 a bit
    front = next(front for front in found["fronts"] if front["cost"] == "nominal_bits_per_image")
    assert {(point["label"], point["bits"]) for point in front["points"] if point["front"]} == {("lgq", 8), ("lgq", 10)}


def test_an_unfinished_benchmark_says_what_there_is_and_what_is_missing(write_benchmark, few_methods, tmp_path):
    folder = write_benchmark(tmp_path, few_methods, (10,), pictures=False)
    for name in ("lgq-10b-s1-ar", "lgq-10b-s2-ar", "fsq-10b-s0-ar"):
        (folder / "jobs/generation" / name / "result.json").unlink()
    found = judge(collect(folder))
    gone = {"generation/lgq-10b-s1-ar", "generation/lgq-10b-s2-ar", "generation/fsq-10b-s0-ar"}
    assert set(found["facts"]["missing"]) == gone
    (ranking,) = [r for r in found["rankings"] if r["metric"] == "fd" and r["prior"] == "ar"]
    seeds = {row["label"]: len(row["values"]) for row in ranking["rows"]}
    assert seeds == {"lgq": 1, "fsq": 2, "simvq": 3, "half_codes": 3} and ranking["rows"][0]["label"] == "lgq"
    assert any("Missing measurements of the plan: 3" in line for line in found["caveats"])
    # one tokenizer alone
    for path in sorted((folder / "jobs").rglob("result.json")):
        if path.parent.name != "lgq-10b-s0":
            path.unlink()
    alone = judge(collect(folder))
    assert "Only lgq" not in summary(alone) and "| `lgq` | 10 |" in summary(alone)
    assert alone["overall"] is None and alone["answers"][0]["status"] == "missing"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["extractor"].update(name="Inception-v3"), "different extractor"),
        (lambda r: r["reference"].update(id="other"), "different reference"),
        (lambda r: r["inputs"].update(data_fingerprint="beef"), "data_fingerprint: f00d and beef"),
        (lambda r: r["inputs"]["config"].update(images=1024), "config: images: 2048 and 1024"),
        (lambda r: r["inputs"].update(sampling={"steps": 99}), "sampling options.*steps: 8 and 99|sampling options.*steps: 99"),
        (lambda r: r["inputs"].update(guidance=[1, 5]), "guidance scales"),
        (lambda r: r["inputs"].update(curve_images=64), "images per guidance scale"),
        (lambda r: r["inputs"].update(benchmark_version=2), "benchmark_version"),
        (lambda r: r["metrics"]["fd"].update(n=1024), "number of images in fd"),
        (lambda r: r["inputs"].pop("job"), "name no job"),
        (lambda r: r["inputs"]["job"].update(label="lgq"), "same job"),
    ],
)
def test_what_was_measured_otherwise_is_refused_by_the_files_names(write_benchmark, few_methods, tmp_path, change, message):
    folder = write_benchmark(tmp_path, dict(list(few_methods.items())[:2]), (10,), seeds=(0,), priors=("ar",), pictures=False)
    file = folder / "jobs/generation/fsq-10b-s0-ar/result.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=message) as refused:
        collect(folder)
    assert str(file) in str(refused.value)


def test_how_fast_samples_were_drawn_does_not_keep_them_apart(write_benchmark, few_methods, tmp_path):
    folder = write_benchmark(tmp_path, few_methods, (10,), seeds=(0,), priors=("ar",), pictures=False)
    file = folder / "jobs/generation/fsq-10b-s0-ar/result.json"
    values = json.loads(file.read_text())
    values["inputs"]["sampling"]["lookahead"] = 8
    file.write_text(json.dumps(values))
    assert len(collect(folder).generations) == len(few_methods)


def test_tokenizers_whose_tokens_were_spoilt_otherwise_are_refused(write_benchmark, few_methods, tmp_path):
    folder = write_benchmark(tmp_path, few_methods, (10,), seeds=(0,), priors=(), pictures=False)
    file = folder / "jobs/quality/fsq-10b-s0/result.json"
    values = json.loads(file.read_text())
    values["inputs"]["perturbations"] = [0.5]
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"{file}.*perturbed shares|perturbed shares"):
        collect(folder)


def test_claims_hold_together(verdict):
    """The interval of each is as wide as all of its kind need, and its p says the same."""
    for claim in verdict["claims"]:
        null = 0 if claim["kind"] == "difference" else 1
        assert (claim["p"] < 0.05) == (not claim["low"] <= null <= claim["high"])
        assert claim["family"] == {"difference": 2, "ratio": 1}[claim["kind"]]
    (answer,) = [answer for answer in verdict["answers"] if "reconstruct better" in answer["question"]]
    assert "1,024 codes" in answer["answer"] and "16,384" in answer["answer"]


def test_claims_of_equal_methods_are_decided_in_few_benchmarks(write_benchmark, tmp_path):
    """Any false answer among eight comparisons of rFD and four of codes, of methods that are alike and use the codes alike."""
    alike = {
        label: (method, 180.0, 100.0, 0.5) for label, method in zip("abcd", ("lgq", "lgq_paper", "fsq", "simvq"), strict=True)
    }
    benchmark = collect(write_benchmark(tmp_path, alike, (8, 10), priors=(), pictures=False))
    rng, wrong = np.random.default_rng(1), []

    def drawn(result):
        distance = Metric("rFD", rng.normal(100, 1), 2048, "lower")
        return replace(result, metrics={"fd": distance}, details={"usage": {"active": 500 * np.exp(rng.normal(0, 0.2))}})

    for _ in range(120):
        runs = {job: drawn(result) for job, result in benchmark.tokenizers.items()}
        found = claims.test_claims(replace(benchmark, tokenizers=runs))
        assert len(found) == 12
        sure = [not claim["low"] <= (0 if claim["kind"] == "difference" else 1) <= claim["high"] for claim in found]
        wrong.append(any(sure) or any(claim["status"] == "supported" for claim in found))
    assert np.mean(wrong) <= 2 * 0.05 + 0.04  # two kinds of claims, 5 % each


def test_a_measure_without_a_direction_has_no_best(verdict, folder):
    for ranking in (ranking for ranking in verdict["rankings"] if ranking["better"] == "neither"):
        assert not any(row["best"] or row["first"] or row["rank"] for row in ranking["rows"]), ranking["metric"]
    assert {"codes_used", "perplexity", "prior_bits"} <= {r["metric"] for r in verdict["rankings"] if r["better"] == "neither"}
    heading, _, *rows = [line for line in summary(verdict).splitlines() if line.startswith("|")]
    column = [cell.strip() for cell in heading.split("|")].index("Codes used")
    assert not any("**" in row.split("|")[column] for row in rows[:8])


def test_kid_is_set_beside_fd_and_disagreement_is_told(verdict, write_benchmark, few_methods, tmp_path):
    (answer,) = [answer for answer in verdict["answers"] if "KID" in answer["question"]]
    assert answer["status"] in ("supported", "partly") and "MaskGIT KID" in summary(verdict)
    folder = write_benchmark(tmp_path, few_methods, (10,), priors=("ar",), pictures=False)
    for file in (folder / "jobs/generation").rglob("result.json"):
        values = json.loads(file.read_text())
        values["metrics"]["kid"]["value"] *= -1  # the worst by FD is the best by KID
        file.write_text(json.dumps(values))
    found = judge(collect(folder))
    (answer,) = [answer for answer in found["answers"] if "KID" in answer["question"]]
    assert answer["status"] == "contradicted" and "lgq and half_codes at 10 bits with AR" in answer["answer"].replace(
        "half_codes and lgq", "lgq and half_codes"
    )
    assert found["overall_kid"]["rows"][0]["label"] == "half_codes" and found["overall"]["rows"][0]["label"] == "lgq"


def test_the_average_over_budgets_says_what_it_averages_and_whether_the_order_changes(write_benchmark, few_methods, tmp_path):
    folder = write_benchmark(tmp_path, few_methods, (8, 10), pictures=False)
    steady = judge(collect(folder))
    assert "averaged over 8 and 10 bits per position and AR and MaskGIT" in steady["answers"][0]["question"]
    for file in (folder / "jobs/generation").rglob("lgq-8b*/result.json"):
        values = json.loads(file.read_text())
        fd = values["metrics"]["fd"]
        fd["value"] += 100
        file.write_text(json.dumps(values))
    moved = judge(collect(folder))
    assert moved["overall"]["interaction"] < 1e-3 and ["fsq", "lgq"] in [sorted(p) for p in moved["overall"]["reversed"]]
    said = moved["answers"][0]["answer"]
    assert "lgq at 10 bits" in said and "fsq at 8 bits" in said and "change places beyond chance" in said
    (folder / "jobs/generation/simvq-8b-s0-ar/result.json").unlink()
    for seed in (1, 2):
        (folder / f"jobs/generation/simvq-8b-s{seed}-ar/result.json").unlink()
    left = judge(collect(folder))
    assert left["overall"]["left_out"] == ["simvq"] and "Left out" in left["answers"][0]["answer"]


def test_nothing_there_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        collect(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"python -m eval\.benchmark"):
        collect(tmp_path)


def test_caveats_come_from_facts(verdict):
    said = " ".join(verdict["caveats"])
    extractor = "EfficientNet-Lite0's features: they are not FID"
    for text in (extractor, "32\u00d732", "2,048 samples", "3 seeds", "tuned no method", "blurred copy"):
        assert text in said
    facts = verdict["facts"] | {"extractor": {"name": "Inception-v3"}, "image_size": 256, "samples": 50_000, "tuning_trials": 8}
    facts |= {"seeds": [0, 1, 2, 3, 4], "training_images": None, "worse_than_blurred": 0, "priors": ["ar"]}
    assert caveats(facts) == []
    odd = caveats(facts | {"nominal_bits_per_image": {"10": {"a": 640.0, "b": 640.0, "c": 656.0}}})
    assert odd == ["At 10 bits, not every method spends the 640 bits per image of the others: c 656."]


def test_the_verdict_is_json_and_the_summary_has_every_number_with_its_error(verdict):
    assert json.loads(json.dumps(verdict, allow_nan=False)) == verdict
    text = summary(verdict)
    (ranking,) = [r for r in verdict["rankings"] if r["metric"] == "fd" and r["prior"] == "maskgit"]
    first = ranking["rows"][0]
    assert f"**{first['mean']:.1f} \u00b1 {first['standard_error']:.1f}** a" in text
    assert text.count("| `") == 8 and "Means over 3 seeds" in text and "every gFD of 2,048 samples" in text


def test_the_same_files_give_the_same_verdict(folder, verdict):
    assert judge(collect(folder)) == verdict
