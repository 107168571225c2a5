"""Result files: whole or absent, checked when read, and never ranked against what was measured differently."""

import dataclasses
import json
import math

import pytest

from eval.results import Metric, Result, find_results, is_finished, ranked, read_result, write_result
from pipeline.core.errors import UserError


@pytest.fixture
def result():
    return Result(
        name="MaskGIT",
        part="generation",
        metrics={
            "fd": Metric("gFD (EfficientNet-Lite0)", 61.5, 2048, "lower", standard_error=0.7, floor=40.25),
            "accuracy": Metric("Region accuracy", 0.5, 2048, "higher"),
        },
        extractor={"name": "EfficientNet-Lite0", "sha256": "5793", "resize": "96"},
        reference={"id": "r1", "n": 4096},
        inputs={"prior": "abc", "seeds": [0, 2048]},
        versions={"python": "3.11"},
        command=["eval.run"],
        started="2026-01-01T00:00:00+00:00",
        seconds=1.5,
        pictures={"samples": "samples.png"},
    )


def test_what_is_written_is_read(result, tmp_path):
    path = write_result(tmp_path / "a", result)
    assert read_result(path) == result
    assert find_results(tmp_path) == {path: result}


def test_values_without_a_block_are_kept_to_eight_digits_and_older_files_have_none(result, tmp_path):
    exact = tuple(61.5 + math.sin(block) / 3 for block in range(20))
    with_blocks = dataclasses.replace(result.metrics["fd"], without_block=exact)
    path = write_result(tmp_path, dataclasses.replace(result, metrics={"fd": with_blocks}))
    found = read_result(path).metrics["fd"].without_block
    assert isinstance(found, tuple) and found == pytest.approx(exact, rel=5e-8) and found != exact
    content = json.loads(path.read_text())
    del content["metrics"]["fd"]["without_block"]
    path.write_text(json.dumps(content))
    assert read_result(path).metrics["fd"] == result.metrics["fd"]


def test_a_number_that_is_not_finite_is_never_written(result, tmp_path):
    broken = dataclasses.replace(result, metrics={"fd": Metric("FD", float("nan"), 10, "lower")})
    with pytest.raises(ValueError, match="not finite"):
        write_result(tmp_path, broken)
    broken = dataclasses.replace(result, metrics={"fd": Metric("FD", 1.0, 10, "lower", without_block=(1.0, float("inf")))})
    with pytest.raises(ValueError, match="not finite"):
        write_result(tmp_path, broken)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[1, 2]",
        lambda text: text.replace("lgq-evaluation", "something"),
        lambda text: text.replace('"version": 1', '"version": 99'),
        lambda text: text.replace('"label"', '"labell"'),
        lambda text: text.replace("61.5", '"61.5"'),
        lambda text: text.replace('"lower"', '"smaller"'),
        lambda text: text.replace('"generation"', '"painting"'),
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "reference"}),
        lambda text: json.dumps({**json.loads(text), "extra": 1}),
    ],
)
def test_a_damaged_file_is_one_clear_line(result, tmp_path, damage):
    path = write_result(tmp_path, result)
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=r"result\.json") as error:
        read_result(path)
    assert "\n" not in str(error.value)


def test_nothing_to_read_is_said(tmp_path):
    with pytest.raises(UserError, match="run python -m eval"):
        find_results(tmp_path)


def test_finished_means_the_same_inputs_and_all_pictures(result, tmp_path):
    assert not is_finished(tmp_path, result.inputs)
    write_result(tmp_path, result)
    assert not is_finished(tmp_path, result.inputs)
    (tmp_path / "samples.png").touch()
    assert is_finished(tmp_path, result.inputs)
    assert not is_finished(tmp_path, {**result.inputs, "seeds": [1, 2049]})
    (tmp_path / "result.json").write_text("{")
    assert not is_finished(tmp_path, result.inputs)


def test_ranking_is_best_first(result):
    better = dataclasses.replace(
        result,
        name="AR",
        metrics={
            "fd": dataclasses.replace(result.metrics["fd"], value=55.0),
            "accuracy": dataclasses.replace(result.metrics["accuracy"], value=0.7),
        },
    )
    assert [row.name for row in ranked([result, better], "fd")] == ["AR", "MaskGIT"]
    assert [row.name for row in ranked([better, result], "accuracy")] == ["AR", "MaskGIT"]
    assert ranked([result], "kid") == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"extractor": {"name": "Inception-v3"}}, "extractor"),
        ({"reference": {"id": "r2"}}, "reference"),
        ({"metrics": {"fd": Metric("gFD (EfficientNet-Lite0)", 1.0, 512, "lower")}}, "number of images"),
    ],
)
def test_what_was_measured_differently_is_not_ranked(result, change, what):
    with pytest.raises(UserError, match=what):
        ranked([result, dataclasses.replace(result, name="AR", **change)], "fd")
