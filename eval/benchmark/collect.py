"""The result files of a benchmark as one table, refused where they were not measured in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.benchmark.plan import CONTRACT
from eval.recording import NOT_DECISIVE
from eval.results import FILE, Metric, Result, read_result
from pipeline.core.errors import UserError
from pipeline.core.files import read_json

JOBS = "jobs"
# inputs that decide a number and are no property of the measured method
SHARED = ("version", "benchmark_version", "data_fingerprint", "extractor", "config")
# the same of what is measured alike: tokenizers, and the priors of one kind
OWN = {
    "perturbations": "perturbed shares",
    "sampling": "sampling options",
    "guidance": "guidance scales",
    "curve_images": "images per guidance scale",
}
SPEED = ("lookahead",)  # sampling options that say how fast: the samples are the same


@dataclass(frozen=True)
class Job:
    """What was measured: a method at a budget and a seed, and the prior on its tokens (None for the tokenizer itself).

    A label stands for one method, so the method's name does not tell jobs apart.
    """

    method: str = field(compare=False)
    label: str
    bits: float
    seed: int
    prior: str | None = None

    @staticmethod
    def read(values: Mapping[str, Any]) -> Job:
        """From `inputs["job"]`; KeyError or TypeError where it is not one."""
        prior = values.get("prior")
        return Job(
            str(values["method"]),
            str(values.get("label") or values["method"]),
            float(values["bits"]),
            int(values["seed"]),
            prior,
        )


@dataclass(frozen=True)
class Benchmark:
    """All results below `folder`; jobs in the order of their budgets, labels and seeds.

    contract: what the runner wrote about the plan and its fairness, where it did; missing: measurements of the plan without a
    result.
    """

    name: str
    folder: Path
    tokenizers: Mapping[Job, Result]
    generations: Mapping[Job, Result]
    yardstick: Result | None
    contract: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    places: Mapping[str, Path] = field(default_factory=dict)  # folders by id of a result

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The names of the methods, in the order of the alphabet."""
        return tuple(sorted({job.label for job in self.jobs}))

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Every measured job."""
        return (*self.tokenizers, *self.generations)

    @cached_property
    def bits(self) -> tuple[float, ...]:
        """The bit budgets per token."""
        return tuple(sorted({job.bits for job in self.jobs}))

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the trainings."""
        return tuple(sorted({job.seed for job in self.jobs}))

    @cached_property
    def priors(self) -> tuple[str, ...]:
        """The priors, in the order of the alphabet."""
        return tuple(sorted({job.prior for job in self.generations if job.prior}))

    @cached_property
    def methods(self) -> dict[str, str]:
        """The quantizer of each label."""
        return {job.label: job.method for job in self.jobs}

    def results(self, prior: str | None) -> dict[Job, Result]:
        """The results of one prior, or of the tokenizers."""
        source = self.tokenizers if prior is None else self.generations
        return {job: result for job, result in source.items() if job.prior == prior}

    def table(self, metric: str, bits: float, prior: str | None) -> dict[str, dict[int, Metric]]:
        """A metric of a stratum: label -> seed -> number."""
        found: dict[str, dict[int, Metric]] = {}
        for job, result in self.results(prior).items():
            if job.bits == bits and metric in result.metrics:
                found.setdefault(job.label, {})[job.seed] = result.metrics[metric]
        return found

    def metrics(self, prior: str | None) -> dict[str, Metric]:
        """Every metric that the results of a part have, with a number as an example of its name and kind."""
        return {name: metric for result in self.results(prior).values() for name, metric in result.metrics.items()}

    def place(self, result: Result) -> Path:
        """The folder of a result, where its pictures lie."""
        return self.places[_identity(result)]


def collect(folder: Path) -> Benchmark:
    """Read a benchmark; UserError where there is nothing, a file is damaged, or results may not be compared."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a benchmark's results, such as results/benchmark/demo")
    files = sorted((folder / JOBS).rglob(FILE))
    if not files:
        raise UserError(f"{folder / JOBS}: no {FILE} in it; run python -m eval.benchmark first")
    results = {path: read_result(path) for path in files}
    yardsticks = {path: result for path, result in results.items() if result.part == "yardstick"}
    tokenizers, generations = _part(results, "tokenizer"), _part(results, "generation")
    _agree(yardsticks | tokenizers | generations, "inputs", _shared)
    for found in (tokenizers, generations):
        _agree(found, "extractor", lambda result: result.extractor)
        _agree(found, "reference", lambda result: result.reference.get("id"))
        _agree_in_metrics(found)
    for found in (tokenizers, *_by_prior(generations)):
        for key, words in OWN.items():
            _agree(found, words, lambda result, key=key: _own(result, key))
    if len(yardsticks) > 1:
        raise UserError(f"{', '.join(map(str, yardsticks))}: more than one yardstick; keep that of these jobs")
    contract = read_json(folder / CONTRACT) if (folder / CONTRACT).exists() else {}
    try:
        planned = _planned(contract)
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{folder / CONTRACT}: damaged contract; run python -m eval.benchmark again") from None
    measured = {path.parent.relative_to(folder / JOBS).as_posix() for path in files}
    return Benchmark(
        name=str(contract.get("name") or folder.resolve().name),
        folder=folder,
        tokenizers=_by_job(tokenizers),
        generations=_by_job(generations),
        yardstick=next(iter(yardsticks.values()), None),
        contract=contract,
        missing=tuple(name for name in planned if name not in measured),
        places={_identity(result): path.parent for path, result in results.items()},
    )


def _part(results: Mapping[Path, Result], part: str) -> dict[Path, Result]:
    return {path: result for path, result in results.items() if result.part == part}


def _planned(contract: Mapping[str, Any]) -> list[str]:
    """The measurements that a contract asks for, by the names of their folders."""
    return [str(name) for name in contract["measurements"]] if contract else []


def _by_prior(results: Mapping[Path, Result]) -> list[dict[Path, Result]]:
    """The results of each prior."""
    found: dict[Any, dict[Path, Result]] = {}
    for path, result in results.items():
        job = result.inputs.get("job")
        found.setdefault(job.get("prior") if isinstance(job, Mapping) else None, {})[path] = result
    return list(found.values())


def _by_job(results: Mapping[Path, Result]) -> dict[Job, Result]:
    """Results by job, sorted; UserError where a job is not named or was measured twice."""
    found: dict[Job, tuple[Path, Result]] = {}
    for path, result in results.items():
        try:
            job = Job.read(result.inputs["job"])
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}: its inputs name no job (method, bits, seed); measure it again") from None
        if job in found:
            raise UserError(f"{path} and {found[job][0]}: two results of the same job; delete one")
        found[job] = (path, result)
    order: Callable[[Job], tuple] = lambda job: (job.bits, job.prior or "", job.label, job.seed)  # noqa: E731
    return {job: found[job][1] for job in sorted(found, key=order)}


def _agree(results: Mapping[Path, Result], what: str, value: Callable[[Result], Any]) -> None:
    """UserError, naming two files, where a property differs among results."""
    first: tuple[Path, Any] | None = None
    for path, result in results.items():
        own = value(result)
        if first is None:
            first = (path, own)
        elif own != first[1]:
            raise UserError(
                f"{first[0]} and {path}: different {what} ({_difference(first[1], own)}), so they cannot stand in one ranking; "
                "measure both with the same settings"
            )


def _agree_in_metrics(results: Mapping[Path, Result]) -> None:
    """UserError where two results give a metric on another number of images or under another label."""
    for name in dict.fromkeys(name for result in results.values() for name in result.metrics):
        having = {path: result for path, result in results.items() if name in result.metrics}
        _agree(having, f"label of {name}", lambda result, name=name: result.metrics[name].label)
        if not _counts_tokens(having.values(), name):
            _agree(having, f"number of images in {name}", lambda result, name=name: result.metrics[name].n)


def _counts_tokens(results: Iterable[Result], name: str) -> bool:
    """Whether a metric stands on tokens, of which methods have different numbers for the same images."""
    return name in ("codes_used", "perplexity", "bits_per_token", "bits_per_image", "nominal_bits_per_image")


def _shared(result: Result) -> dict[str, Any]:
    shared = {key: result.inputs[key] for key in SHARED if key in result.inputs}
    if isinstance(shared.get("config"), dict):
        shared["config"] = {key: value for key, value in shared["config"].items() if key not in NOT_DECISIVE}
    return shared


def _own(result: Result, key: str) -> Any:
    value = result.inputs.get(key)
    return {name: option for name, option in value.items() if name not in SPEED} if isinstance(value, dict) else value


def _difference(a: Any, b: Any) -> str:
    """What differs, in a few words."""
    if isinstance(a, dict) and isinstance(b, dict):
        key = next(key for key in (*a, *b) if a.get(key) != b.get(key))
        return f"{key}: {_difference(a.get(key), b.get(key))}"
    return f"{a} and {b}"


def _identity(result: Result) -> str:
    return f"{result.part} {result.name} {result.inputs.get('job')}"
