"""From a result file back to its numbers: the commands that make it again, and how the new result compares with the old.

A result of `eval.run` holds its recipe; that of a benchmark lies beside it, in `job.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.api import load_data, prior_folder, tokenizer_folder, weights_sha256
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.core.measurement import MEASURED_FROM, measuring
from pipeline.core.token_store import read_identity
from pipeline.steps import Step

MEASURED = "measured"  # the folder of the new result, or of all that eval.run leaves


@dataclass(frozen=True)
class Recorded:
    """What a result file says of how it came about.

    tokenizer, prior: the settings of the trainings ("config") and, where known, what ran them ("versions") and the hash of what
    they made ("weights_sha256"); None for none. tokens: data, mirrored, shard_images, precision; empty for the defaults.
    evaluation: its settings; benchmark: the job.json of a benchmark's result, None for one of eval.run.
    """

    path: Path
    result: dict[str, Any]
    data: dict[str, Any]
    tokenizer: dict[str, Any] | None
    tokens: dict[str, Any]
    prior: dict[str, Any] | None
    evaluation: dict[str, Any]
    benchmark: dict[str, Any] | None

    @property
    def threads(self) -> int | None:
        """Of the process that measured."""
        return threads(self.result["versions"])

    @property
    def code(self) -> str:
        """The commit of the code that measured."""
        return str(self.result["versions"].get("code") or "unknown")


@dataclass(frozen=True)
class Remaking:
    """How a result is made again: files of settings, and the commands that read them."""

    files: dict[Path, Mapping[str, Any]]
    steps: list[Step]

    def write_files(self) -> None:
        """Write the settings, as JSON, which is YAML."""
        for path, values in self.files.items():
            write_json(path, values)


@dataclass(frozen=True)
class Compared:
    """A metric then and now."""

    label: str
    then: float
    now: float
    standard_error: float | None

    @property
    def same(self) -> bool:
        """Whether it is the same number, to the bit."""
        return self.then == self.now

    def cells(self) -> tuple[str, str, str, str]:
        """A row of the table."""
        error = f" ± {self.standard_error:.2g}" if self.standard_error else ""
        if self.same:
            return self.label, f"{self.then:.6g}{error}", f"{self.now:.6g}", "none"
        by = abs(self.now - self.then)
        errors = f", {by / self.standard_error:.1f} standard errors" if self.standard_error else ""
        return self.label, f"{self.then:.6g}{error}", f"{self.now:.6g}", f"{by:.2g}{errors}"


def read_recorded(path: Path) -> Recorded:
    """What a result file, or the one in a folder, says of how it came about; UserError where it does not."""
    path = path / "result.json" if path.is_dir() else path
    result = read_json(path)
    try:
        if _part(result, "format", str) != "lgq-evaluation":
            raise ValueError("format")
        for metric in _part(result, "metrics", dict).values():
            _part(metric, "label", str)
            _part(metric, "value", float)
            _part(metric, "standard_error", float, None)
        _part(_part(result, "inputs", dict), "data_fingerprint", str)
        for name, kind in (("name", str), ("part", str), ("versions", dict)):
            _part(result, name, kind)
        _part(result["versions"], "packages", dict, {})
        recorded = _of_eval(path, result) if _part(result, "recipe", dict, {}) else _of_benchmark(path, result)
        _part(recorded.data, "name", str)
        for trained in (recorded.tokenizer, recorded.prior):
            if trained is not None:
                _part(trained, "config", dict, {})
                _part(trained, "weights_sha256", str, None)
                if not 1 <= _part(_part(trained, "versions", dict, {}), "processes", int, 1) <= 1024:
                    raise ValueError("processes")
    except (KeyError, TypeError, ValueError) as error:
        what = f" ({str(error.args[0])[:60]})" if error.args else ""
        raise UserError(
            f"{path}: does not say how it was made{what}; results of eval.run (`recipe`) and eval.benchmark (job.json beside) "
            "do, unless older code wrote them: delete it and evaluate again"
        ) from None
    return recorded


REQUIRED = object()


def _part(values: Any, name: str, kind: type, default: Any = REQUIRED) -> Any:
    """A value of a mapping, which has to be of a kind (or the default); KeyError or TypeError that names it."""
    if not isinstance(values, dict) or (default is REQUIRED and name not in values):
        raise KeyError(name)
    value = values.get(name, default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if value is not default and (not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))):
        raise TypeError(f"{name}: {str(value)[:30]}")
    return value


def require_data(recorded: Recorded) -> None:
    """UserError where the images on this machine are not those of the result."""
    found, wanted = load_data(**recorded.data).fingerprint, recorded.result["inputs"]["data_fingerprint"]
    if found != wanted:
        raise UserError(f"{recorded.path}: was made of other images (fingerprint {wanted}, here {found}); bring those here")


def remake(recorded: Recorded, out: Path, tokenizer: Path | None = None, prior: Path | None = None) -> Remaking:
    """The commands that make a result again below `out`.

    `tokenizer`, `prior`: runs that take the place of a training. UserError where they have other weights, or where the result
    does not say how to train one.
    """
    if prior is not None and tokenizer is None:
        tokenizer = Path(read_identity(prior_folder(prior) / "tokens.json").tokenizer)
    if tokenizer is not None and recorded.tokenizer is not None:
        _require_weights("--tokenizer", tokenizer_folder(tokenizer), recorded.tokenizer)
    if prior is not None and recorded.prior is not None:
        _require_weights("--prior", prior_folder(prior), recorded.prior)
    files: dict[Path, Mapping[str, Any]] = {out / "evaluation.yaml": recorded.evaluation}
    steps = []
    if tokenizer is None:
        tokenizer = out / "tokenizer"
        steps.append(_training("tokenizer", "stage1_tokenizer/train.py", recorded.tokenizer, recorded, out, files))
    if recorded.prior is None:
        prior = None  # it takes no part
    elif prior is None:
        prior, tokens = out / "prior", out / "tokens"
        steps.append(Step("encode the images into tokens", _tokenizing(recorded.tokens, tokenizer, tokens), recorded.threads))
        steps.append(_training("prior", "stage2_prior/train.py", recorded.prior, recorded, out, files, f"tokens={tokens}"))
    if recorded.benchmark is None:
        words = _evaluating(out, tokenizer, prior)
    else:
        words = _measuring(recorded, recorded.benchmark, out, tokenizer if prior is None else prior, files)
    return Remaking(files, [*steps, Step("measure", ["python", *words], recorded.threads)])


def find_remade(recorded: Recorded, out: Path) -> Path:
    """The new result's file below `out`; UserError where there is none."""
    found = {path: read_json(path) for path in sorted((out / MEASURED).rglob("result.json"))}
    alike = [path for path, result in found.items() if result["part"] == recorded.result["part"]]
    named = [path for path in alike if found[path]["name"] == recorded.result["name"]]
    chosen = alike if len(alike) == 1 else named
    if len(chosen) != 1:
        said = f"{len(chosen)} results like {recorded.path}"
        raise UserError(f"{out / MEASURED}: {said}; take the code that made it ({recorded.code})")
    return chosen[0]


def compare(recorded: Recorded, remade: Path) -> list[Compared]:
    """Every metric of the old result beside that of the new file; UserError where the new one lacks some."""
    new = read_json(remade)["metrics"]
    missing = sorted(recorded.result["metrics"].keys() - new.keys())
    if missing:
        raise UserError(f"{recorded.path}: {missing[0]} is not measured any more; take the code that made it ({recorded.code})")
    return [
        Compared(then["label"], float(then["value"]), float(new[name]["value"]), then.get("standard_error"))
        for name, then in recorded.result["metrics"].items()
    ]


def table(rows: list[Compared]) -> str:
    """The comparison as text."""
    cells = [("metric", "then", "now", "difference"), *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)


def changes(recorded: Recorded, remade: Path) -> list[str]:
    """What ran then and now, where it differs: the code, packages, the machine, and the options of sampling."""
    then, now = (
        {**result["versions"], **result["versions"].get("packages", {}), **result["inputs"].get("sampling", {})}
        for result in (recorded.result, read_json(remade))
    )
    return [f"{name} {then[name]}, now {now.get(name)}" for name in then if name != "packages" and then[name] != now.get(name)]


def threads(versions: Mapping[str, Any]) -> int | None:
    """Of a process, where it says so: with another number the last bits differ."""
    said = str(versions.get("device", "")).removeprefix("CPU, ").partition(" ")[0]  # all that results of before say
    number = versions.get("threads", int(said) if said.isdigit() else None)
    return number if isinstance(number, int) and 0 < number <= 1024 else None


def _of_eval(path: Path, result: dict[str, Any]) -> Recorded:
    recipe = result["recipe"]
    tokenizer, prior = _part(recipe, "tokenizer", dict), _part(recipe, "prior", dict, None)
    tokens = {}
    if prior is not None:
        tokens = _part(recipe, "tokens", dict)
        for name, kind in (("data", dict), ("mirrored", bool), ("shard_images", int), ("precision", str)):
            _part(tokens, name, kind)
        _part(tokens["data"], "name", str)
    evaluation = _part(recipe, "evaluation", dict)
    return Recorded(path, result, _part(tokenizer, "data", dict), tokenizer, tokens, prior, evaluation, None)


def _of_benchmark(path: Path, result: dict[str, Any]) -> Recorded:
    if not (path.parent / "job.json").exists():
        raise KeyError("job.json")
    job = read_json(path.parent / "job.json")
    facts, inputs, made = _part(job, "job", dict), _part(job, "inputs", dict), {"versions": result["versions"]}
    if _part(facts, "kind", str) not in MEASURED_FROM:
        raise ValueError("kind")
    evaluation = _part(inputs, "eval", dict) | {"images": _part(_part(result["inputs"], "config", dict), "images", int)}
    if "stage1" not in inputs:
        return Recorded(path, result, _part(inputs, "data", dict), None, {}, None, evaluation, job)
    for name in ("method", "label"):
        _part(facts, name, str)
    tokenizer = {"config": _part(inputs, "stage1", dict), "weights_sha256": _part(result["inputs"], "tokenizer_sha256", str)}
    prior = None
    if "stage2" in inputs:
        _part(facts, "prior", str)
        weights = _part(result["inputs"], "prior_sha256", str)
        prior = {"config": _part(inputs, "stage2", dict), "weights_sha256": weights, **made}
    data = _part(tokenizer["config"], "data", dict)
    return Recorded(path, result, data, tokenizer | made, {}, prior, evaluation, job)


def _require_weights(option: str, folder: Path, trained: Mapping[str, Any]) -> None:
    found, wanted = weights_sha256(folder), trained.get("weights_sha256")
    if wanted is not None and found != wanted:
        said = f"{folder} has other weights ({found[:12]}) than the result ({wanted[:12]})"
        raise UserError(f"{option}: {said}; give those, or none to train them")


def _training(
    part: str,
    script: str,
    trained: Mapping[str, Any] | None,
    recorded: Recorded,
    out: Path,
    files: dict[Path, Mapping[str, Any]],
    *settings: str,
) -> Step:
    """Train a part, in as many processes and threads as it was."""
    if trained is None or "config" not in trained:
        raise UserError(f"{recorded.path}: does not say how its {part} was trained; give one of these images with --{part} RUN")
    config, versions = out / f"{part}.yaml", trained.get("versions", {})
    # how fast it works, and who is told, are no part of it
    workers = {"workers": min(4, (os.cpu_count() or 1) - 1)} if part == "tokenizer" else {}
    files[config] = workers | trained["config"] | {"tracker": "none"}
    words = [script, "--config", f"{config}", f"run={out / part}", *settings]
    processes = versions.get("processes", 1)
    if processes > 1:
        file = "two_cpu_processes" if str(versions.get("device")).startswith("CPU") else "eight_gpus"
        launch = ["accelerate", "launch", "--quiet", f"--config_file=configs/accelerate/{file}.yaml"]
        return Step(f"train the {part}", [*launch, f"--num_processes={processes}", *words], threads(versions))
    return Step(f"train the {part}", ["python", *words], threads(versions))


def _tokenizing(tokens: Mapping[str, Any], tokenizer: Path, out: Path) -> list[str]:
    """Encode the images as they were."""
    words = ["python", "pipeline/tokenize_dataset.py", "--tokenizer", f"{tokenizer}", "--out", f"{out}"]
    if tokens:
        words += ["--shard-images", f"{tokens['shard_images']}", "--precision", tokens["precision"]]
        words += [] if tokens["mirrored"] else ["--no-mirror"]
        words += ["--data", tokens["data"]["name"]]
        words += [f"data.{name}={json.dumps(value)}" for name, value in tokens["data"].items() if name != "name"]
    return words


def _evaluating(out: Path, tokenizer: Path, prior: Path | None) -> list[str]:
    """`eval.run` of a tokenizer, and of a prior if there is one."""
    priors = [] if prior is None else [f"{prior}"]
    words = ["-m", "eval.run", "--tokenizer", f"{tokenizer}", "--priors", *priors, "--out", f"{out / MEASURED}"]
    return [*words, "--config", f"{out / 'evaluation.yaml'}"]


def _measuring(
    recorded: Recorded, benchmark: Mapping[str, Any], out: Path, run: Path, files: dict[Path, Mapping[str, Any]]
) -> list[str]:
    """A benchmark's measurement of one job, with the settings of its benchmark that it depends on."""
    facts, inputs, config = benchmark["job"], benchmark["inputs"], out / "benchmark.yaml"
    prior = facts.get("prior") or "none"
    files[config] = {
        "name": "reproduced",
        "stage1": "none",  # what trainings read: they are done
        "stage2": {prior: "none"},
        "eval": f"{out / 'evaluation.yaml'}",
        "quantizers": [{"name": facts.get("method") or "none", "label": facts.get("label") or "none"}],
        "bits": [facts.get("bits") or 1],
        "seeds": [facts.get("seed") or 0],
        "guidance": {prior: inputs.get("guidance") or [1.0]},
        "images": recorded.evaluation["images"],
        **{name: inputs[name] for name in ("curve_images", "perturbations") if name in inputs},
    }
    return measuring(run, out / MEASURED, config, facts)
