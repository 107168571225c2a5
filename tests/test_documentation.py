"""What README, docs, configurations and `--help` tell people to type is understood, and what they name is there."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser

from eval.benchmark.config import BenchmarkConfig
from eval.config import EvalConfig
from pipeline.core.config import load_config
from pipeline.core.errors import UserError
from stage1_tokenizer.config import Stage1Config
from stage2_prior.config import Stage2Config

PROJECT = Path(__file__).resolve().parents[1]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
CONFIGURATIONS = sorted((PROJECT / "configs").rglob("*.yaml"))
SCHEMAS = {
    "stage1_tokenizer.train": Stage1Config,
    "stage2_prior.train": Stage2Config,
    "eval.run": EvalConfig,
    "eval.benchmark.__main__": BenchmarkConfig,
}
EXPORTING = ["pipeline.sample", "pipeline.edit", "pipeline.export", "pipeline.compress"]
PLAIN = ["pipeline.tokenize_dataset", "pipeline.reproduce", *EXPORTING, "eval.report", "eval.benchmark.report"]
COMMANDS = [*SCHEMAS, *PLAIN]


class Parsed(Exception):
    """Carries what a command's parser made of its arguments."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a Markdown page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def command_lines(text: str) -> Iterator[str]:
    """Lines that start one of our commands; a backslash continues a line, two blanks end it (what follows explains)."""
    text = re.sub(r"\\\n#?\s*", "", text)
    for line in text.splitlines():
        line = re.split(r"\s{2,}", line.lstrip("# ").strip())[0]
        if re.match(r"(\w+=\S* )*(accelerate launch|python -m (pipeline|eval)|make) ?\S*", line) and "|" not in line:
            yield line


def documented() -> list[tuple[str, str]]:
    """Every command line that we show, with the name of the file that shows it."""
    found = [(page.name, line) for page in PAGES for block in blocks(page, "bash") for line in command_lines(block)]
    for file in CONFIGURATIONS:
        comment = "\n".join(line for line in file.read_text().splitlines() if line.startswith("#   "))
        found += [(f"{file.parent.name}/{file.name}", line) for line in command_lines(comment)]
    for module in COMMANDS:
        help_text = getattr(importlib.import_module(module), "EXAMPLES", "")
        found += [(f"{module} --help", line) for line in command_lines(help_text)]
    return found


def parse(monkeypatch: pytest.MonkeyPatch, module: str, words: list[str]) -> argparse.Namespace:
    """What the command itself makes of these words; it stops right after."""
    for method in ("parse_args", "parse_intermixed_args"):
        original = getattr(argparse.ArgumentParser, method)

        def stop(parser, *given, original=original, **named):
            raise Parsed(original(parser, *given, **named))

        monkeypatch.setattr(argparse.ArgumentParser, method, stop)
    monkeypatch.setattr(sys, "argv", [module, *words])
    with pytest.raises(Parsed) as stopped:
        importlib.import_module(module).main()
    return stopped.value.arguments


def our_part(words: list[str]) -> tuple[str, list[str]]:
    """The module that a command line starts, and the words that are for it; the launcher's own are checked here."""
    if words[:2] == ["python", "-m"]:
        is_package = (PROJECT / words[2].replace(".", "/")).is_dir()
        return f"{words[2]}.__main__" if is_package else words[2], words[3:]
    launcher = launch_command_parser().parse_args(words[2:])
    if launcher.config_file:
        load_config_from_file(str(PROJECT / launcher.config_file))
    script = launcher.training_script
    assert (PROJECT / script).is_file(), script
    return script.removesuffix(".py").replace("/", "."), launcher.training_script_args


def test_there_are_commands_to_check():
    shown = documented()
    assert len([line for page, line in shown if page == "README.md"]) >= 12
    helps = {f"{module} --help" for module in COMMANDS}
    assert {page.split("/")[0] for page, _ in shown} >= {"stage1", "stage2", "accelerate", "eval"} | helps


@pytest.mark.parametrize(("page", "line"), documented(), ids=lambda text: text[:60])
def test_every_command_that_we_show_is_understood(monkeypatch, page, line):
    words = [word for word in shlex.split(line) if not re.match(r"[A-Z0-9_]+=", word)]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (PROJECT / "Makefile").read_text(), re.MULTILINE), line
        return
    module, own = our_part(words)
    arguments = parse(monkeypatch, module, own)
    if module in SCHEMAS:
        load_config(SCHEMAS[module], arguments.config, arguments.settings)
    if module == "pipeline.tokenize_dataset" and arguments.data:
        assert (PROJECT / "configs/data" / f"{arguments.data}.yaml").is_file(), line


def test_a_wrong_command_would_be_noticed(monkeypatch):
    module, own = our_part(shlex.split("accelerate launch stage1_tokenizer/train.py optim.lrr=1"))
    arguments = parse(monkeypatch, module, own)
    with pytest.raises(UserError, match="did you mean lr"):
        load_config(SCHEMAS[module], arguments.config, arguments.settings)
    with pytest.raises(SystemExit):
        our_part(shlex.split("accelerate launch --config_fle x stage1_tokenizer/train.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        name, _, fragment = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert fragment in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings], target


@pytest.mark.parametrize("page", [*PAGES, *CONFIGURATIONS], ids=lambda page: page.name)
def test_every_path_of_ours_that_is_named_exists(page):
    ours = r"(?:configs|pipeline|stage1_tokenizer|stage2_prior|eval|tests|docs)/[\w./-]*\w"
    for path in re.findall(rf"(?<![\w/.]){ours}", page.read_text(encoding="utf-8")):
        if "my_vq" not in path:  # the reader's own
            assert (PROJECT / path).exists(), f"{page.name}: {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_parse_and_import_names_that_exist(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("file", sorted((PROJECT / "configs/accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_understands_its_configurations(file):
    config = load_config_from_file(str(file))
    assert isinstance(config, ClusterConfig)
    processes = {"one_process": 1, "one_gpu": 1, "two_cpu_processes": 2, "eight_gpus": 8, "fsdp": 8, "two_machines": 16}
    assert config.num_processes == processes[file.stem]
    assert yaml.safe_load(file.read_text())["mixed_precision"] == "no"  # ours decides
