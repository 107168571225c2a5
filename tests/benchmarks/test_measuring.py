"""What the benchmarks share: whose file is whose, what is told of changed code, and help for every option."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import pytest

from benchmarks import measuring
from benchmarks.measuring import CHANGES, device_name, opened, result_file, slug
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json

PROJECT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(path.stem for path in (PROJECT / "benchmarks").glob("*.py") if "run_command(main)" in path.read_text())
BY_DEVICE = ("prior", "soft_assignment", "end_to_end", "large_vocabulary")


def test_a_file_is_named_after_its_device():
    assert slug("Intel(R) Xeon(R) Processor, AVX512, 2 threads") == "intel_xeon_avx512_2_threads"
    assert slug("Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz, AVX2, 6 threads") == "intel_core_i7_9750h_2_60ghz_avx2_6_threads"
    assert slug("NVIDIA H200") == "nvidia_h200"
    assert result_file("prior", "cpu").name == f"prior_{slug(device_name('cpu'))}.json"


@pytest.mark.parametrize("benchmark", BY_DEVICE)
def test_no_committed_file_refuses_the_default_of_a_device(benchmark, monkeypatch):
    """The file that a command picks by itself, on any device of which there are results, is one of that device."""
    monkeypatch.chdir(PROJECT)
    results = {path: read_json(path) for path in Path("results").glob(f"{benchmark}_*.json")}
    assert results
    for path, result in results.items():
        device = result.get("device")
        if device is None:  # an old file, of a name that `result_file` never gives
            assert "threads" not in path.name
            continue
        monkeypatch.setattr(measuring, "device_name", lambda _, name=device: name)
        assert result_file(benchmark, "cpu") == path
        assert opened(path, "cpu") == result
    monkeypatch.undo()
    monkeypatch.chdir(PROJECT)
    opened(result_file(benchmark, "cpu"), "cpu")  # that of this machine, whether it is there or not


def test_a_result_file_is_of_one_device_and_of_the_same_settings(tmp_path):
    out = tmp_path / "result.json"
    first = opened(out, "cpu", settings={"sizes": (1, 2)})
    assert first == {"device": device_name("cpu"), "settings": {"sizes": [1, 2]}, "rows": []}
    write_json(out, first | {"rows": [1]})
    assert opened(out, "cpu", settings={"sizes": (1, 2)})["rows"] == [1]
    with pytest.raises(UserError, match=f"{out}: its settings is .*2.*, and here it is .*3.*; give another --out"):
        opened(out, "cpu", settings={"sizes": (1, 3)})
    write_json(out, first | {"device": "abacus"})
    with pytest.raises(UserError, match=f"{out}: its device is abacus, and here it is .*; give another --out"):
        opened(out, "cpu")
    write_json(out, {"rows": []})
    with pytest.raises(UserError, match="its device is not told"):
        opened(out, "cpu")


def test_changed_code_is_told_where_results_are_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measuring, "ROOT", tmp_path)
    monkeypatch.setattr(measuring, "measured_by", lambda: {"code": "abc" + CHANGES})
    opened(tmp_path / "elsewhere.json", "cpu")
    assert capsys.readouterr().err == ""
    opened(tmp_path / "results/some.json", "cpu")
    assert "changes that are not committed" in (told := capsys.readouterr().err) and told.count("\n") == 1 and "abc+" in told


def test_a_result_file_that_grows_does_not_make_the_code_a_changed_one(tmp_path, monkeypatch):
    def git(*words: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        measuring.subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    for name in ("results/a.json", "README.md", "code.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    monkeypatch.setattr(measuring, "ROOT", tmp_path)
    monkeypatch.setattr(measuring, "versions", lambda: {"code": "abc" + CHANGES})
    (tmp_path / "results/a.json").write_text("2\n")
    (tmp_path / "README.md").write_text("2\n")
    assert measuring.measured_by() == {"code": "abc"}
    (tmp_path / "code.py").write_text("2\n")
    assert measuring.measured_by() == {"code": "abc" + CHANGES}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_how_a_benchmark_is_started_and_what_each_option_does(name, monkeypatch, capsys):
    parsers: list[argparse.ArgumentParser] = []
    shown = argparse.ArgumentParser.print_help
    monkeypatch.setattr(
        argparse.ArgumentParser, "print_help", lambda self, file=None: parsers.append(self) or shown(self, file)
    )
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    module = importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(SystemExit) as end:
        module.main()
    out = capsys.readouterr().out
    assert end.value.code == 0 and out.startswith(f"usage: python -m benchmarks.{name} [-h]")
    assert (module.__doc__ or "").strip().splitlines()[-1] in out, "the docstring, as it is"
    assert [action.dest for parser in parsers for action in parser._actions if not action.help] == []


def test_all_benchmarks_are_commands():
    assert len(COMMANDS) == 10 and set(BY_DEVICE) < set(COMMANDS)
