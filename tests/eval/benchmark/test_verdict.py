"""From result files to the verdict: the truth of simulations is found, unfair comparisons are refused, gaps are told."""

import json

import pytest

from eval.benchmark.caveats import caveats
from eval.benchmark.collect import collect
from eval.benchmark.summary import summary
from eval.benchmark.verdict import judge
from pipeline.core.errors import UserError

FEW = {
    "lgq": ("lgq", 170.0, 90.0, 0.48),
    "fsq": ("fsq", 186.0, 104.0, 0.97),
    "simvq": ("simvq", 200.0, 96.0, 0.96),
    "half_codes": ("vq", 250.0, 140.0, 0.30),
}


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
    assert rows["pfd"]["spearman"] > 0.9 and rows["pfd"]["p"] < 0.01 and rows["pfd"]["n"] == 8 and rows["pfd"]["strata"] == 2
    assert rows["bits_per_token"]["p"] > 0.05 and rows["bits_per_token"]["spearman_interval"][0] < 0


def test_claims_are_answered_whatever_the_answer(verdict, write_benchmark, tmp_path):
    assert {(c["rival"], c["kind"], c["status"]) for c in verdict["claims"]} == {
        (rival, kind, "supported") for rival in ("fsq", "simvq") for kind in ("difference", "ratio")
    }
    other = {**FEW, "lgq": ("lgq", 180.0, 125.0, 0.9), "fsq": ("fsq", 186.0, 104.0, 0.97), "simvq": ("simvq", 1e3, 125.5, 0.96)}
    found = judge(collect(write_benchmark(tmp_path, other, (10,), priors=(), pictures=False)))
    status = {(c["rival"], c["kind"]): c["status"] for c in found["claims"]}
    assert status["fsq", "difference"] == status["fsq", "ratio"] == "contradicted"
    assert status["simvq", "difference"] == "inconclusive"
    answers = {answer["question"]: answer["status"] for answer in found["answers"]}
    assert answers["Is it so that lgq reconstructs better than fsq and simvq?"] == "partly"
    assert answers["Is it so that lgq uses about half as many codes as fsq and simvq?"] == "contradicted"


def test_two_seeds_of_one_method_tie(write_benchmark, tmp_path):
    twins = {"a": ("vq", 200.0, 100.0, 0.7), "b": ("vq", 200.0, 100.0, 0.7), "worse": ("vq", 260.0, 150.0, 0.3)}
    found = judge(collect(write_benchmark(tmp_path, twins, (10,), pictures=False)))
    for ranking in (r for r in found["rankings"] if r["metric"] == "fd"):
        assert {row["label"] for row in ranking["rows"] if row["best"]} == {"a", "b"}
    assert found["predictors"] == []  # three methods are no correlation


def test_more_bits_are_found_to_help(write_benchmark, tmp_path):
    found = judge(collect(write_benchmark(tmp_path, FEW, (8, 10), priors=("ar",), pictures=False)))
    rows = [row for row in found["budgets"] if row["prior"] == "ar"]
    assert [row["label"] for row in rows] == sorted(FEW)
    assert all(row["low"] < -30 < row["high"] and row["holm"] < 0.05 for row in rows)  # the simulation adds 15 a bit
    front = next(front for front in found["fronts"] if front["cost"] == "nominal_bits_per_image")
    assert {(point["label"], point["bits"]) for point in front["points"] if point["front"]} == {("lgq", 8), ("lgq", 10)}


def test_an_unfinished_benchmark_says_what_there_is_and_what_is_missing(write_benchmark, tmp_path):
    folder = write_benchmark(tmp_path, FEW, (10,), pictures=False)
    for name in ("lgq-10b-s1-ar", "lgq-10b-s2-ar", "fsq-10b-s0-ar"):
        (folder / "jobs/generation" / name / "result.json").unlink()
    found = judge(collect(folder))
    gone = {"generation/lgq-10b-s1-ar", "generation/lgq-10b-s2-ar", "generation/fsq-10b-s0-ar"}
    assert set(found["facts"]["missing"]) == gone
    (ranking,) = [r for r in found["rankings"] if r["metric"] == "fd" and r["prior"] == "ar"]
    seeds = {row["label"]: len(row["values"]) for row in ranking["rows"]}
    assert seeds == {"lgq": 1, "fsq": 2, "simvq": 3, "half_codes": 3} and ranking["rows"][0]["label"] == "lgq"
    assert any("missing" in line for line in found["caveats"])
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
        (lambda r: r["metrics"]["fd"].update(n=1024), "number of images in fd"),
        (lambda r: r["inputs"].pop("job"), "name no job"),
        (lambda r: r["inputs"]["job"].update(label="lgq"), "same job"),
    ],
)
def test_what_was_measured_otherwise_is_refused_by_the_files_names(write_benchmark, tmp_path, change, message):
    folder = write_benchmark(tmp_path, dict(list(FEW.items())[:2]), (10,), seeds=(0,), priors=("ar",), pictures=False)
    file = folder / "jobs/generation/fsq-10b-s0-ar/result.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=message) as refused:
        collect(folder)
    assert str(file) in str(refused.value)


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
    facts |= {"seeds": [0, 1, 2, 3, 4], "training_images": None, "worse_than_blurred": 0}
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
