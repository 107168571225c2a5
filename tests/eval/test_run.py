"""The command eval.run on a tiny finished chain: what it writes, what it skips, and what it refuses."""

import json

import numpy as np
import pytest
from PIL import Image

from eval.results import find_results, read_result
from pipeline.core.files import read_json

SMALL = ["images=40", "reference_images=60", "kid_subsets=3", "shown_images=40", "shown_per_group=2", "maskgit.steps=3"]
PARTS = {"real", "validation", "blurred", "decoded", "reconstruction", "maskgit", "ar"}


@pytest.fixture(scope="module")
def evaluated(commands, chain, tmp_path_factory):
    """The folder of results, and a function that runs the same command again."""
    out = tmp_path_factory.mktemp("evaluated") / "demo" / "eval"
    cache = {"LGQ_CACHE": str(out.parent / "cache")}

    def run(*settings):
        where = ["--tokenizer", chain.tokenizer, "--out", out, "--priors", chain.maskgit, chain.ar]
        return commands.succeed("eval.run", *settings, *where, environment=cache)

    run(*SMALL)
    return out, run


def test_every_part_has_a_result_with_all_that_it_stands_on(evaluated, chain):
    out, _ = evaluated
    results = {path.parent.name: result for path, result in find_results(out).items()}
    assert set(results) == PARTS
    for part, result in results.items():
        assert all((out / part / name).exists() for name in result.pictures.values())
        assert result.extractor["name"] == "EfficientNet-Lite0" and len(result.extractor["sha256"]) == 64
        assert result.reference["id"] and result.versions["packages"]["torch"] and result.inputs["config"]["seed"] == 0
        assert all("FID" not in metric.label and metric.n >= 40 for metric in result.metrics.values())
    floor = results["real"].metrics
    for prior in ("maskgit", "ar"):
        metrics = results[prior].metrics
        assert {"fd", "kid", "is", "precision", "recall", "class_accuracy", "prior_bits"} <= set(metrics)
        assert metrics["fd"].floor == floor["fd"].value < metrics["fd"].value
        assert metrics["fd"].label == "gFD (EfficientNet-Lite0)"
        assert results[prior].reference["id"] == results["real"].reference["id"]
    assert results["maskgit"].details["sampling"]["steps"] == 3 == results["maskgit"].details["decoding"]["of"]
    wanted = read_json(chain.ar / "prior" / "tokens.json")["tokenizer_sha256"]
    assert results["reconstruction"].inputs["tokenizer_sha256"] == wanted


def test_psnr_is_that_of_the_saved_pictures(evaluated):
    out, _ = evaluated
    result = read_result(out / "reconstruction" / "result.json")
    sheets = [np.asarray(Image.open(out / "reconstruction" / f"{name}.png")) for name in ("originals", "reconstructions")]
    tiles = [sheet.reshape(5, 16, 8, 16, 3).swapaxes(1, 2).reshape(40, -1).astype(float) for sheet in sheets]
    wanted = np.mean(10 * np.log10(255**2 / np.square(tiles[0] - tiles[1]).mean(1)))
    assert result.metrics["psnr"].n == 40
    assert result.metrics["psnr"].value == pytest.approx(wanted, abs=1e-6)


def test_what_is_finished_is_skipped_and_what_is_lost_is_done_again(evaluated):
    out, run = evaluated
    before = {path: path.read_bytes() for path in find_results(out)}
    (out / "blurred" / "result.json").unlink()
    (out / "maskgit" / "samples.png").unlink()
    done = run(*SMALL).out
    assert done.count("finished before") == 5
    again = {path: read_result(path) for path in before}
    for path, content in before.items():
        old = json.loads(content)
        assert {name: metric.value for name, metric in again[path].metrics.items()} == {
            name: metric["value"] for name, metric in old["metrics"].items()
        }
        if path.parent.name in ("real", "validation", "decoded", "reconstruction", "ar"):
            assert path.read_bytes() == content
    assert (out / "maskgit" / "samples.png").exists()


def test_the_report_is_made_of_it(evaluated, commands):
    out, _ = evaluated
    commands.succeed("eval.report", out.parent)
    page = (out.parent / "report.html").read_text()
    assert "LGQ tokens, autoregressive and MaskGIT priors" in page and page.count("<img ") > 50
    listed = commands.succeed("eval.report", out.parent, "--dry-run").out
    assert listed.count("result.json") == len(PARTS)


def test_dry_run_says_what_would_be_evaluated_and_writes_nothing(commands, chain, tmp_path):
    where = ["--tokenizer", chain.tokenizer, "--out", tmp_path / "out", "--priors", chain.maskgit]
    said = commands.succeed("eval.run", "--dry-run", "maskgit.steps=5", *where).out
    assert "steps=5" in said and "tokens of 16 codes" in said
    assert not (tmp_path / "out").exists()


def test_bad_input_is_one_line_and_exit_code_2(commands, runs, tmp_path):
    for words, arguments in (
        ("no such run", ["--tokenizer", tmp_path / "nowhere"]),
        ("did you mean images", ["imagess=40", "--tokenizer", runs.tokenizer]),
        ("at least 40", ["images=3", "--tokenizer", runs.tokenizer]),
        ("steps", ["ar.steps=3", "--tokenizer", runs.tokenizer, "--priors", runs.ar]),
        ("different names", ["--tokenizer", runs.tokenizer, "--priors", runs.ar, runs.ar]),
    ):
        result = commands.run("eval.run", *arguments)
        assert result.code == 2 and len(result.error_lines) == 1 and words in result.err, result.err
    tokens = runs.ar / "prior" / "tokens.json"
    tokens.write_text(tokens.read_text().replace(read_json(tokens)["tokenizer_sha256"], "0" * 64))
    result = commands.run("eval.run", "--tokenizer", runs.tokenizer, "--priors", runs.ar)
    assert result.code == 2 and len(result.error_lines) == 1 and "not the one" in result.err
    result = commands.run("eval.report", tmp_path / "empty")
    assert result.code == 2 and len(result.error_lines) == 1
