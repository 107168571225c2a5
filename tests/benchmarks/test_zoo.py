"""The comparison of all quantizers: one budget for each, a row for each, and no failure that stops or hides."""

from __future__ import annotations

import json

import pytest

from benchmarks.trials import SHARED, Trial, run_trials
from benchmarks.zoo import CONFIG, changes, table, verdict
from pipeline.core.config import load_config
from pipeline.core.errors import UserError
from stage1_tokenizer.config import Stage1Config
from stage1_tokenizer.quantizers import QUANTIZERS, build_quantizer
from stage1_tokenizer.quantizers.budget import bits_per_position

TINY = (
    *("data=shapes", "data.image_size=16", "data.train_per_class=6", "data.validation_per_class=3", "image_size=16"),
    *("batch_size=8", "backbone.patch=4", "backbone.channels=[16]", "backbone.layers=1", "optim.warmup=8"),
)
RESIDUAL = 'quantizer={"name": "residual", "base": {"name": "vq_ema", "dim": 4, "codebook_size": 6}}'
BROKEN = 'quantizer={"name": "vq", "dim": 4, "codebook_size": 0}'
TRIALS = [Trial("two indices", (RESIDUAL, *TINY), 0), Trial("broken", (BROKEN, *TINY), 0)]


@pytest.fixture(scope="module")
def result(tmp_path_factory, module_handlers):
    """The result, and its file, which held the better trial as one that had failed."""
    folder = tmp_path_factory.mktemp("zoo")
    begun = {"config": CONFIG, "settings": ["images=64", *SHARED], "rows": [{"name": "two indices", "seed": 0, "error": "x"}]}
    (folder / "tiny.json").write_text(json.dumps(begun))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield run_trials(TRIALS, CONFIG, 64, folder / "tiny.json", 2), folder / "tiny.json"


def test_a_broken_method_is_a_row_that_says_why_and_the_rest_goes_on(result):
    rows = {row["name"]: row for row in result[0]["rows"]}
    assert "codebook_size is 0" in rows["broken"]["error"]
    row = rows["two indices"]
    assert row["images"] == 30 and row["tokens"] == 30 * 16 and row["trained_parameters"] == 0 and row["training_gap"] < 1e-6
    assert row["nominal_bits"] == pytest.approx(2 * 2.585, abs=1e-3) and 0 < row["effective_bits"] <= row["nominal_bits"]
    assert 1 <= row["perplexity"] <= 36 and 0 < row["codes_used"] <= 1 and 0 < row["psnr_error"] < 1
    assert row["psnr_untrained"] < row["psnr"] < 30 and row["psnr_without_codes"] > 5
    assert row["ms_per_step"] > 0 and 0 < row["peak_mb"] < 2000
    assert result[0]["versions"]["packages"]["torch"] and len(row["data_fingerprint"]) == 16


def test_what_is_done_is_not_done_again(result):
    first, file = result
    begun = (file.parent / "runs" / "tiny" / "two_indices_0.log").stat().st_mtime_ns
    assert run_trials(TRIALS[:1], CONFIG, 64, file, 2) == first == json.loads(file.read_text())
    assert (file.parent / "runs" / "tiny" / "two_indices_0.log").stat().st_mtime_ns == begun
    with pytest.raises(UserError, match="holds rows of other settings"):
        run_trials(TRIALS, CONFIG, 128, file, 2)


def test_the_table_has_a_line_for_every_row_and_a_verdict(result):
    page = table(result[0])
    assert "| `broken` | 0 | failed: " in page and page.count("\n| `") == 2
    row = next(row for row in result[0]["rows"] if "error" not in row)
    good = row | {"psnr": 30.0, "psnr_untrained": 10.0, "psnr_without_codes": 13.0}
    assert verdict(good) == "learns" and verdict({"error": "x"}) == "failed"
    assert verdict(good | {"psnr": 15.0}) == verdict(good | {"psnr_without_codes": 25.0}) == "does not learn"


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_every_method_gets_the_same_bits_and_nothing_else_differs(name):
    config = load_config(Stage1Config, CONFIG, changes(name, 10.0, (8, 8)))
    assert abs(bits_per_position(build_quantizer(**config.quantizer), (8, 8)) - 10) < 0.12  # 1104 vectors are 10.11 bits
    plain = load_config(Stage1Config, CONFIG)
    for field in ("data", "image_size", "images", "batch_size", "seed", "flip", "optim", "loss", "precision"):
        assert getattr(config, field) == getattr(plain, field)
