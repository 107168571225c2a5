"""The contract: what every training of a benchmark shares, what differs and by how much, checked before any starts.

All settings of the tokenizers are the same but for the quantizer with its options, the normalisation of latents that its family
needs, and the seed; those of the priors but for the seed and the tokens. Bits per image are the same within a tolerance, or the
row says that the method has the bits it has. Parameters are reported, not matched.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from eval.benchmark.config import BenchmarkConfig, Method
from eval.benchmark.jobs import differences
from eval.benchmark.plan import CONTRACT, VERSIONS, PlannedJob, all_jobs
from eval.config import EvalConfig
from eval.cost import parameters
from eval.features import VERSION as FEATURES_VERSION
from pipeline.api import Stage1Config, Stage2Config, Tokenizer, at_budget, load_config, normalised_latents, token_grid
from pipeline.core.config import to_dict
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_text
from pipeline.core.run_folder import FREE_SETTINGS

WIDTH = 120  # of the page, in characters
NUMBERS = ("bits/image", "encoder", "quantizer", "decoder")  # columns that are set to the right
# the judge says how samples are drawn, whatever options a prior brings
MAY_DIFFER = ("quantizer", "backbone.latent_norm", "seed", "tokens", "prior.sampling", *FREE_SETTINGS)


@dataclass(frozen=True)
class Row:
    """A method at a budget of `bits` per position.

    given: the benchmark's own options for it. exact: whether it spends these bits, within the tolerance.
    """

    label: str
    bits: float
    quantizer: dict[str, Any]
    given: dict[str, Any]
    normalised_latents: bool
    wanted_bits: float
    bits_per_image: float
    tokens: str
    exact: bool
    encoder: int
    quantizer_parameters: int
    decoder: int


@dataclass(frozen=True)
class Contract:
    """What all share, what differs, the ids of what will be measured, and where the rules are broken (then nothing starts)."""

    name: str
    seeds: list[int]
    tuning_trials: int
    stage1: dict[str, Any]
    stage2: dict[str, dict[str, Any]]
    evaluation: dict[str, Any]
    rows: list[Row]
    measurements: list[str]
    violations: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class Settings:
    """The configurations of all jobs, resolved as their commands will resolve them."""

    def __init__(self, config: BenchmarkConfig) -> None:
        self.config = config
        self.evaluation = to_dict(load_config(EvalConfig, config.eval, config.eval_settings))
        base = load_config(Stage1Config, config.stage1, config.stage1_settings)
        try:
            self.grid = token_grid((base.image_size, base.image_size), base.backbone.factor)
        except ValueError as error:
            raise UserError(f"{config.stage1}: {error}") from None
        self.quantizers = {
            (method.label, bits): self._quantizer(method, bits) for method in config.quantizers for bits in config.bits
        }
        self.stage1 = {
            (method.label, bits, seed): load_config(Stage1Config, config.stage1, self.tokenizer_settings(method, bits, seed))
            for method in config.quantizers
            for bits in config.bits
            for seed in config.seeds
        }
        self.stage2 = {
            (prior, seed): load_config(Stage2Config, file, [*self.prior_settings(seed), "run=runs/x", "tokens=runs/x"])
            for prior, file in config.stage2.items()
            for seed in config.seeds
        }

    def tokenizer_settings(self, method: Method, bits: float, seed: int) -> list[str]:
        """What the command line of a tokenizer's training says, but for its folder."""
        quantizer = self.quantizers[method.label, bits]
        own = [f"quantizer={json.dumps(quantizer)}", f"backbone.latent_norm={json.dumps(normalised_latents(method.name))}"]
        return [*self.config.stage1_settings, *own, f"seed={seed}"]

    def prior_settings(self, seed: int) -> list[str]:
        """What the command line of a prior's training says, but for its folder and its tokens."""
        return [*self.config.stage2_settings, f"seed={seed}"]

    def inputs(self, job: PlannedJob) -> dict[str, Any]:
        """Every setting that decides what a job makes; where it works and how fast is none.

        Those of measurements have the versions of the code that measures; those of artifacts have none, since the code that
        trains keeps what it does.
        """
        shared = {"eval": self.evaluation, "images": self.config.images}
        shared |= {"version": VERSIONS.get(job.kind, 0), "features_version": FEATURES_VERSION}
        if job.method is None or job.bits is None or job.seed is None:
            first = next(iter(self.stage1.values()))
            return shared | {"data": first.data, "image_size": first.image_size}
        inputs: dict[str, Any] = {
            "given": _given(self.config.stage1_settings) | {"options": json.dumps(job.method.options, sort_keys=True)},
            "stage1": _decisive(to_dict(self.stage1[job.method.label, job.bits, job.seed])),
        }
        if job.prior is not None:
            inputs["given for the prior"] = _given(self.config.stage2_settings)
            inputs["stage2"] = _decisive(to_dict(self.stage2[job.prior, job.seed]))
        measuring: dict[str, dict[str, Any]] = {
            "quality": {"perturbations": list(self.config.perturbations)},
            "generation": {
                "guidance": list(self.config.guidance.get(job.prior or "", ())),
                "curve_images": self.config.curve_images,
            },
        }
        return inputs | (shared | measuring[job.kind] if job.is_measurement else {})

    def _quantizer(self, method: Method, bits: float) -> dict[str, Any]:
        try:
            return at_budget(method.name, bits, method.options, self.grid)
        except FileNotFoundError:
            load_config(Stage1Config, self.config.stage1, [f"quantizer={method.name}"])  # which says what is near
            raise


def contract(settings: Settings) -> Contract:
    """Resolve all trainings and check that the comparison is fair."""
    config = settings.config
    rows = [_row(settings, method, bits) for bits in config.bits for method in config.quantizers]
    first = next(iter(settings.stage1.values()))
    stage1 = {f"{label}-{bits:g}b-s{seed}": to_dict(value) for (label, bits, seed), value in settings.stage1.items()}
    violations = unequal(stage1)
    for (label, bits, seed), value in settings.stage1.items():
        needs = normalised_latents(value.quantizer["name"])
        if value.backbone.latent_norm != needs:
            violations.append(f"{label}-{bits:g}b-s{seed}: backbone.latent_norm is not {needs}, which its family needs")
    for prior in config.stage2:
        violations += unequal({f"{prior}, seed {seed}": to_dict(settings.stage2[prior, seed]) for seed in config.seeds})
    return Contract(
        name=config.name,
        seeds=list(config.seeds),
        tuning_trials=config.tuning.trials,
        stage1=_shared(next(iter(stage1.values()))) | {"backbone.factor": first.backbone.factor},
        stage2={prior: _shared(to_dict(settings.stage2[prior, config.seeds[0]])) for prior in config.stage2},
        evaluation=settings.evaluation
        | {
            "guidance": {prior: list(scales) for prior, scales in config.guidance.items()},
            "curve_images": config.curve_images,
            "images": config.images,
            "perturbations": list(config.perturbations),
            "versions": {**VERSIONS, "features": FEATURES_VERSION},
        },
        rows=rows,
        measurements=sorted(id for id, job in all_jobs(config).items() if job.is_measurement),
        violations=violations,
    )


def unequal(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where configurations, by the trainings' names, differ from the first in more than they may; one line each."""
    names = list(configs)
    reference = _shared(configs[names[0]])
    found = []
    for name in names[1:]:
        ours = _shared(configs[name])
        for key in sorted(ours.keys() | reference.keys()):
            if ours.get(key) != reference.get(key):
                found.append(f"{name}: {key} is {ours.get(key)!r}, but {reference.get(key)!r} for {names[0]}")
    return found


def text(agreed: Contract, tolerance: float) -> str:
    """The contract as a page for the terminal."""
    lines = [f"Contract of the benchmark {agreed.name}", "", "Every tokenizer is trained with", *_listed(agreed.stage1)]
    first = next(iter(agreed.stage2.values()), {})
    common = {key: first[key] for key in first if all(values.get(key) == first[key] for values in agreed.stage2.values())}
    lines += ["", "Every prior is trained with", *_listed(common)]
    for prior, values in agreed.stage2.items():
        own = {key: value for key, value in values.items() if key not in common}
        lines += [f"and {prior} with", *_listed(own)] if own else []
    trials = agreed.tuning_trials
    tuned = f"those of each method were chosen from {trials} trainings" if trials else "as shipped, tuned for none"
    lines += [
        "",
        f"Seeds of both stages: {', '.join(map(str, agreed.seeds))}. Options of the methods: {tuned}.",
        f"Bits are equal within {tolerance:g} per position, or the row is marked. Parameters are reported, not matched.",
        "",
    ]
    titles = ("method", "bits/image", "tokens", "latents", "encoder", "quantizer", "decoder", "options of its own")
    table = [titles] + [
        (
            row.label,
            f"{row.bits_per_image:,.1f}".removesuffix(".0"),
            row.tokens.partition(",")[0],
            "normalised" if row.normalised_latents else "as they are",
            *(_amount(count) for count in (row.encoder, row.quantizer_parameters, row.decoder)),
            json.dumps(row.given) if row.given else "",
        )
        for row in agreed.rows
    ]
    if not any(row.given for row in agreed.rows):
        table = [line[:-1] for line in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    budgets = [None, *(row.bits for row in agreed.rows)]
    marks = ["", *("" if row.exact else "(the bits it has)" for row in agreed.rows)]
    for number, (line, mark) in enumerate(zip(table, marks, strict=True)):
        if number and budgets[number] != budgets[number - 1]:
            row = agreed.rows[number - 1]
            lines.append(f"-- {row.bits:g} bits per position, {row.wanted_bits:,.10g} per image")
        cells = [
            cell.rjust(width) if title in NUMBERS else cell.ljust(width)
            for title, cell, width in zip(table[0], line, widths, strict=True)
        ]
        lines.append("  ".join([*cells, mark]).rstrip())
    lines += ["", *(f"NOT FAIR: {violation}" for violation in agreed.violations)]
    return "\n".join(lines).rstrip() + "\n"


def _listed(values: Mapping[str, Any]) -> list[str]:
    """Flat settings as a user would give them, a paragraph for each part."""
    parts: dict[str, list[str]] = {}
    for key, value in values.items():
        said = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        parts.setdefault(key.partition(".")[0] if "." in key else "", []).append(f"{key}={said}")
    return [
        line
        for words in parts.values()
        for line in textwrap.wrap(" ".join(words), WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    ]


def _amount(count: int) -> str:
    """A number of parameters: 0, 512, 8.19 k, 28.4 M."""
    if count < 1000:
        return str(count)
    return f"{count / 1e3:.3g} k" if count < 999_500 else f"{count / 1e6:.3g} M"


def _row(settings: Settings, method: Method, bits: float) -> Row:
    config = settings.stage1[method.label, bits, settings.config.seeds[0]]
    try:
        with torch.device("meta"):  # shapes without memory or work
            tokenizer = Tokenizer.create(config.image_size, config.backbone, config.quantizer, config.vision)
    except (ValueError, TypeError) as error:
        raise UserError(f"{settings.config.name}: {method.label}: {error}") from None
    positions = settings.grid[0] * settings.grid[1]
    return Row(
        label=method.label,
        bits=bits,
        quantizer=config.quantizer,
        given=dict(method.options),
        normalised_latents=config.backbone.latent_norm,
        wanted_bits=bits * positions,
        bits_per_image=tokenizer.spec.bits_per_image,
        tokens=str(tokenizer.spec),
        exact=abs(tokenizer.spec.bits_per_image / positions - bits) <= settings.config.tolerance,
        encoder=parameters(tokenizer.encoder) + parameters(tokenizer.to_code),
        quantizer_parameters=parameters(tokenizer.quantizer),
        decoder=parameters(tokenizer.decoder) + parameters(tokenizer.from_code),
    )


def _decisive(values: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if key not in (*FREE_SETTINGS, "tokens")}
    if "prior" in kept:
        kept["prior"] = {name: value for name, value in kept["prior"].items() if name != "sampling"}
    return kept


def _given(settings: Sequence[str]) -> dict[str, list[str]]:
    return {"settings": [text for text in settings if text.partition("=")[0] not in FREE_SETTINGS]}


def _shared(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """The settings that must be the same for all, flat."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if f"{place}{key}" in MAY_DIFFER:
            continue
        if isinstance(value, Mapping):
            flat |= _shared(value, f"{place}{key}.")
        else:
            flat[f"{place}{key}"] = value
    return flat


def write_contract(agreed: Contract, folder: Path) -> Path:
    """Write contract.json beside the results, where the report finds it; UserError where it disagrees with the one there."""
    path = folder / CONTRACT
    value = json.dumps(whole(agreed, folder), indent=2, ensure_ascii=False) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != value:
        write_text(path, value)
    return path


def whole(agreed: Contract, folder: Path) -> dict[str, Any]:
    """The contract of all runs into a folder, as JSON: a run of some seeds, methods or priors leaves those of the others in it.

    A run of all that is there replaces it: what has other settings is measured again. Raises UserError where a run of less than
    that has other settings, since its results could not be compared with the rest.
    """
    path = folder / CONTRACT
    new = json.loads(json.dumps(agreed.to_dict()))
    old = read_json(path) if path.exists() else {}
    try:
        others = sorted(set(old.get("measurements", ())) - set(new["measurements"]))
        if not others:
            return new
        changed = differences(_comparable(old), _comparable(new))
        if changed:
            raise UserError(
                f"{path}: was made with other settings ({'; '.join(changed[:3])}) and has {len(others)} measurements that are "
                f"not in this run, such as {others[0]}; give this run another name (name=...), or run the whole benchmark"
            )
        guidance = old["evaluation"]["guidance"] | new["evaluation"]["guidance"]
        return new | {
            "seeds": sorted({*old["seeds"], *new["seeds"]}),
            "stage2": old["stage2"] | new["stage2"],
            "evaluation": new["evaluation"] | {"guidance": guidance},
            "rows": sorted((_by_name(old["rows"]) | _by_name(new["rows"])).values(), key=lambda row: row["bits"]),
            "measurements": sorted({*old["measurements"], *new["measurements"]}),
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: damaged contract; delete it, then run the whole benchmark") from None


def _comparable(values: Mapping[str, Any]) -> dict[str, Any]:
    """What contracts of runs whose results stand in one table have in common."""
    shared = {key: values[key] for key in ("tuning_trials", "stage1", "stage2", "evaluation")}
    return shared | {"rows": _by_name(values["rows"])}


def _by_name(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{row['label']}-{row['bits']:g}b": row for row in rows}
