"""The rules of the house, each a function of a source tree that gives the places where it is broken."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from pipeline.core.data.sources import DATA
from stage1_tokenizer.quantizers import QUANTIZERS
from stage2_prior.priors import PRIORS

PROJECT = Path(__file__).resolve().parents[1]
PACKAGES = ("eval", "pipeline", "stage1_tokenizer", "stage2_prior")
MAX_LINES = 400
# what a part may import of ours, the most special part first: imports go down only
ALLOWED = {
    "stage1_tokenizer.quantizers": {"stage1_tokenizer.quantizers"},
    "pipeline.core": {"pipeline.core"},
    "stage1_tokenizer": {"stage1_tokenizer", "stage1_tokenizer.quantizers", "pipeline.core"},
    "stage2_prior": {"stage2_prior", "pipeline.core"},
    "pipeline.api": {"pipeline", "pipeline.core", "stage1_tokenizer", "stage1_tokenizer.quantizers", "stage2_prior"},
    "pipeline": {
        "pipeline",
        "pipeline.api",
        "pipeline.core",
        "stage1_tokenizer",
        "stage1_tokenizer.quantizers",
        "stage2_prior",
    },
    "eval": {"eval", "pipeline.api", "pipeline.core"},
}
TAKEN = sys.stdlib_module_names | {name for name in packages_distributions() if name not in PACKAGES}
SAFE = {"weights_only": True, "shell": False, "allow_pickle": False, "trust_remote_code": False}
REGISTERED = {*QUANTIZERS, *PRIORS, *DATA}


def sources(root: Path, *folders: str) -> Iterator[tuple[str, ast.Module]]:
    """Every Python file below some folders, as its path from the root and its syntax tree."""
    for folder in folders:
        for file in sorted((root / folder).rglob("*.py")):
            yield str(file.relative_to(root)), ast.parse(file.read_text(encoding="utf-8"))


def part_of(module: str) -> str | None:
    """The part of the house that a module belongs to; None for other people's."""
    return next((part for part in ALLOWED if module == part or module.startswith(f"{part}.")), None)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that is imported; `from a import b` is a.b, since b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{'.' * node.level}{node.module or ''}.{alias.name}") for alias in node.names)


def is_command(tree: ast.Module) -> bool:
    """Whether a module is meant to be run: it ends with `if __name__ == "__main__"`."""
    return any(isinstance(node, ast.If) and "__main__" in ast.dump(node.test) for node in tree.body)


def imports_go_down_only(root: Path) -> list[str]:
    broken = []
    for path, tree in sources(root, *PACKAGES):
        here = part_of(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        for line, name in imports(tree):
            there = part_of(name)
            if name.startswith("."):
                broken.append(f"{path}:{line}: relative import")
            elif there is not None and there not in ALLOWED[here or ""]:
                broken.append(f"{path}:{line}: {here} imports {name}")
    return broken


def nothing_imports_a_command(root: Path) -> list[str]:
    trees = dict(sources(root, *PACKAGES))
    commands = {path.removesuffix(".py").replace("/", ".") for path, tree in trees.items() if is_command(tree)}
    return [
        f"{path}:{line}: imports the command {name}"
        for path, tree in trees.items()
        for line, name in imports(tree)
        if name in commands or name.rpartition(".")[0] in commands
    ]


def imports_stand_at_the_top(root: Path) -> list[str]:
    broken = []
    for path, tree in sources(root, *PACKAGES, "tests"):
        for function in ast.walk(tree):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if function.name == "main" and is_command(tree):
                    continue  # so that --help answers at once
                broken += {f"{path}:{line}: import inside {function.name}" for line, _ in imports(function)}
    return broken


def files_are_short(root: Path) -> list[str]:
    lengths = {
        file.relative_to(root): len(file.read_text(encoding="utf-8").splitlines())
        for folder in (*PACKAGES, "tests", "benchmarks")
        for file in (root / folder).rglob("*.py")
    }
    return [f"{path}: {lines} lines" for path, lines in lengths.items() if lines > MAX_LINES]


def no_file_hides_another_module(root: Path) -> list[str]:
    # running a script puts its folder first on the path
    folders = {(root / path).parent for path, tree in sources(root, *PACKAGES) if is_command(tree)}
    return [
        f"{entry.relative_to(root)}: hides the module {entry.stem}"
        for folder in sorted(folders)
        for entry in sorted(folder.iterdir())
        if entry.stem in TAKEN and (entry.suffix == ".py" or entry.is_dir())
    ]


def package_files_are_empty(root: Path) -> list[str]:
    # a re-export in pipeline/__init__.py makes a circular import; the table of quantizers is the one exception
    files = [file for package in PACKAGES for file in (root / package).rglob("__init__.py") if file.parent.name != "quantizers"]
    return [f"{file.relative_to(root)}: not empty" for file in files if file.read_text(encoding="utf-8").strip()]


def every_folder_is_a_package(root: Path) -> list[str]:
    folders = {file.parent for package in PACKAGES for file in (root / package).rglob("*.py")}
    return [
        f"{folder.relative_to(root)}: no __init__.py" for folder in sorted(folders) if not (folder / "__init__.py").exists()
    ]


def registered_names_are_compared_nowhere(root: Path) -> list[str]:
    broken = []
    for path, tree in sources(root, *PACKAGES):
        for node in ast.walk(tree):
            if isinstance(node, (ast.Compare, ast.MatchValue)):
                names = {leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant) and leaf.value in REGISTERED}
                broken += [f"{path}:{node.lineno}: compares with {name!r}" for name in sorted(names, key=str)]
    return broken


def nothing_runs_what_it_reads(root: Path) -> list[str]:
    broken = []
    for path, tree in sources(root, *PACKAGES, "tests", "benchmarks"):
        found = [
            (line, name) for line, name in imports(tree) if name.split(".")[0] in ("pickle", "dill", "cloudpickle", "joblib")
        ]
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            value = {key: node.value for key, node in given.items() if isinstance(node, ast.Constant)}
            if name in ("eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"):
                found.append((call.lineno, name))
            if name == "torch.load" and "weights_only" not in given:
                found.append((call.lineno, "torch.load without weights_only"))
            for key, safe in SAFE.items():
                if key in given and value.get(key) is not safe:
                    found.append((call.lineno, f"{key}={ast.unparse(given[key])}"))
        broken += [f"{path}:{line}: {what}" for line, what in found]
    return broken


Rule = Callable[[Path], list[str]]
RULES: list[Rule] = [
    imports_go_down_only,
    nothing_imports_a_command,
    imports_stand_at_the_top,
    files_are_short,
    no_file_hides_another_module,
    package_files_are_empty,
    every_folder_is_a_package,
    registered_names_are_compared_nowhere,
    nothing_runs_what_it_reads,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_is_kept(rule):
    assert rule(PROJECT) == []


COMMAND = "def main():\n    import torch\n\n\nif __name__ == '__main__':\n    main()\n"
FAULTS: list[tuple[Rule, str, str]] = [
    (imports_go_down_only, "stage1_tokenizer/quantizers/new.py", "from pipeline.core.errors import UserError"),
    (imports_go_down_only, "stage1_tokenizer/quantizers/new.py", "import stage1_tokenizer.tokenizer"),
    (imports_go_down_only, "stage1_tokenizer/new.py", "from stage2_prior import prior"),
    (imports_go_down_only, "stage1_tokenizer/new.py", "from pipeline.api import load_tokenizer"),
    (imports_go_down_only, "stage2_prior/new.py", "from stage1_tokenizer.quantizers import QUANTIZERS"),
    (imports_go_down_only, "pipeline/core/new.py", "from stage2_prior.prior import Prior"),
    (imports_go_down_only, "pipeline/core/deep/new.py", "from pipeline import api"),
    (imports_go_down_only, "pipeline/new.py", "if 1:\n    import eval.run"),
    (imports_go_down_only, "eval/new.py", "from pipeline.generator import ImageGenerator"),
    (imports_go_down_only, "eval/new.py", "import stage1_tokenizer"),
    (imports_go_down_only, "eval/new.py", "from . import run"),
    (nothing_imports_a_command, "stage1_tokenizer/new.py", "from stage1_tokenizer.train import main"),
    (nothing_imports_a_command, "stage1_tokenizer/new.py", "from stage1_tokenizer import train"),
    (imports_stand_at_the_top, "pipeline/new.py", "def f():\n    import torch"),
    (imports_stand_at_the_top, "pipeline/new.py", "def main():\n    import torch"),  # of no command
    (imports_stand_at_the_top, "pipeline/new.py", COMMAND + "def other():\n    from torch import nn"),
    (files_are_short, "eval/new.py", "x = 1\n" * 401),
    (no_file_hides_another_module, "stage1_tokenizer/tokenize.py", ""),
    (no_file_hides_another_module, "stage1_tokenizer/datasets.py", ""),
    (no_file_hides_another_module, "stage1_tokenizer/types/x.py", ""),
    (package_files_are_empty, "pipeline/__init__.py", "from pipeline.api import load_tokenizer"),
    (every_folder_is_a_package, "pipeline/deep/new.py", ""),
    (registered_names_are_compared_nowhere, "pipeline/new.py", "if name == 'lgq': pass"),
    (registered_names_are_compared_nowhere, "eval/new.py", "x = 1 if 'maskgit' != name else 2"),
    (registered_names_are_compared_nowhere, "eval/new.py", "x = name in ('fsq', 'other')"),
    (registered_names_are_compared_nowhere, "eval/new.py", "match name:\n    case 'shapes': pass"),
    (nothing_runs_what_it_reads, "eval/new.py", "torch.load(f, weights_only=False)"),
    (nothing_runs_what_it_reads, "eval/new.py", "torch.load(f)"),
    (nothing_runs_what_it_reads, "eval/new.py", "import pickle"),
    (nothing_runs_what_it_reads, "eval/new.py", "from yaml import safe_load\nyaml.load(f)"),
    (nothing_runs_what_it_reads, "eval/new.py", "np.load(f, allow_pickle=True)"),
    (nothing_runs_what_it_reads, "eval/new.py", "subprocess.run(f, shell=not False)"),
    (nothing_runs_what_it_reads, "tests/new.py", "eval(text)"),
]
HARMLESS = {
    "stage1_tokenizer/quantizers/good.py": "import torch\nfrom stage1_tokenizer.quantizers.interface import Quantizer",
    "stage1_tokenizer/good.py": "from stage1_tokenizer.quantizers import QUANTIZERS\nfrom pipeline.core import errors",
    "stage1_tokenizer/train.py": COMMAND,
    "stage2_prior/good.py": "from pipeline.core.token_store import TokenStore\nPRIORS = {'maskgit': 1}",
    "pipeline/good.py": "from stage1_tokenizer.tokenizer import Tokenizer\nfrom pipeline import api",
    "eval/good.py": "from pipeline.api import load_tokenizer\nx = 1\nmodel.eval()\ntorch.load(f, weights_only=True)",
}


@pytest.mark.parametrize("rule, path, text", FAULTS, ids=lambda value: getattr(value, "__name__", None))
def test_a_planted_fault_breaks_its_rule(tmp_path, rule, path, text):
    for name, content in HARMLESS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    for folder in (*PACKAGES, "stage1_tokenizer/quantizers", "pipeline/core", "pipeline/core/deep"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "__init__.py").touch()
    assert rule(tmp_path) == []
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)
    broken = rule(tmp_path)
    assert len(broken) == 1 and broken[0].startswith((path, str(Path(path).parent)))
