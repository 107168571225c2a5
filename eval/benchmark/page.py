"""What the page of a benchmark shows, gathered from its verdict, result files and pictures into plain values for the
template.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from eval.benchmark import plots
from eval.benchmark.answers import prior_name
from eval.benchmark.collect import Benchmark, Job
from eval.benchmark.correlations import spearman
from eval.benchmark.gallery import memorisation, reconstructions, samples
from eval.benchmark.words import counted
from eval.results import Metric, Result
from eval.tables import error, number

MAIN = ("fd", "psnr", "pfd", "codes_used", "bits_per_token")  # columns of the main table from the tokenizers
RANKED = ("kid", "fd")  # by which samples are ranked, with letters
TWO_SIDED = 2.0  # standard errors that a plot shows
TRAINING = {"temperature": "Temperature", "purity": "Purity", "loss": "Loss"}


def gather(benchmark: Benchmark, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """All that the template needs."""
    color = plots.colors(benchmark.labels)
    chief = [ranking for ranking in verdict["rankings"] if ranking["metric"] == "fd"]
    return {
        "verdict": verdict,
        "facts": verdict["facts"],
        "headline": headline(verdict),
        "color": color,
        "cards": cards(verdict),
        "main": main_table(verdict),
        "tables": full_tables(verdict),
        "rankings": [
            plots.ranking(_ranked(benchmark, row), color, TWO_SIDED)
            for row in sorted(chief, key=lambda row: row["prior"] is None)
        ],
        "scatters": _scatters(benchmark, verdict, color),
        "guidance": _guidance(benchmark, color),
        "fronts": _fronts(benchmark, verdict, color),
        "forests": [
            plots.forest([row for row in verdict["predictors"] if row["prior"] == prior], prior_name(prior))
            for prior in dict.fromkeys(row["prior"] for row in verdict["predictors"])
        ],
        "inside": _inside(benchmark, color),
        "training": _training(benchmark, color),
        "reconstructions": reconstructions(benchmark),
        "samples": samples(benchmark),
        "memorisation": memorisation(benchmark),
        "yardstick": _yardstick(benchmark),
        "contract": benchmark.contract,
        "provenance": _provenance(benchmark),
    }


def picture(benchmark: Benchmark, verdict: Mapping[str, Any]) -> bytes | None:
    """The rankings by gFD as PNG, a row for each prior and a column for each budget; None where no samples were measured."""
    found = {(row["prior"], row["bits"]): row for row in verdict["rankings"] if row["metric"] == "fd"}
    rows = [[found.get((prior, bits)) for bits in benchmark.bits] for prior in benchmark.priors]
    drawn = [[_ranked(benchmark, row) if row else None for row in line] for line in rows if any(line)]
    return plots.overview(drawn, plots.colors(benchmark.labels), TWO_SIDED) if drawn else None


def _ranked(benchmark: Benchmark, ranking: Mapping[str, Any]) -> plots.Ranked:
    return plots.Ranked(ranking["rows"], _where(ranking), _floor(benchmark, ranking))


def render(values: Mapping[str, Any]) -> str:
    """The page as HTML."""
    environment = Environment(loader=PackageLoader("eval", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    name = (values["facts"]["extractor"] or {}).get("name")
    environment.filters |= {
        "prior": prior_name,
        # the extractor is named once, in the heading; other words in brackets tell measures apart
        "short": lambda label: label.replace(f" ({name})", "").replace(f" ({name} probe)", ""),
    }
    return environment.get_template("benchmark/report.html.j2").render(values)


def headline(verdict: Mapping[str, Any]) -> str:
    """The verdict in a line."""
    overall = verdict["overall"]
    if overall is None:
        return "Not decided yet"
    best = [row["label"] for row in overall["rows"] if row["best"]]
    if len(best) == len(overall["rows"]):
        return "No tokenizer generates better than the others, beyond chance"
    if len(best) == 1:
        return f"{best[0]} generates best"
    others = f"{len(best) - 1} others" if len(best) > 4 else " and ".join(filter(None, [", ".join(best[1:-1]), best[-1]]))
    return f"{best[0]} leads; {others} cannot be told from it"


def cards(verdict: Mapping[str, Any]) -> list[dict[str, str]]:
    """The first of each budget and prior, with how sure that is."""
    found = []
    for ranking in verdict["rankings"]:
        if ranking["metric"] == "fd" and ranking["prior"]:
            first, best = ranking["rows"][0], [row["label"] for row in ranking["rows"] if row["best"]]
            tie = f"level with {len(best) - 1} other{'s' * (len(best) > 2)}" if len(best) > 1 else "alone in front"
            share = "" if first["first"] is None else f"; first in {100 * first['first']:.0f} % of bootstrap draws"
            metric = _metric(ranking, first)
            found.append(
                {
                    "what": f"Best with {prior_name(ranking['prior'])} at {ranking['bits']:g} bits",
                    "value": first["label"],
                    "number": f"{ranking['label'].split(' (')[0]} {number(metric)}{_plus_minus(metric)}",
                    "aside": f"{tie}{share}; {counted(len(first['values']), 'seed')}, {ranking['n']:,} samples each",
                }
            )
    return found


def main_table(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A row per method and budget: what its tokenizer and its priors score."""
    wanted = [(None, name) for name in MAIN] + [(prior, name) for prior in verdict["facts"]["priors"] for name in RANKED]
    return _table(verdict, lambda ranking: (ranking["prior"], ranking["metric"]) in wanted, wanted)


def full_tables(verdict: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every metric: a table for the tokenizers and one for each prior."""
    found = {}
    for prior in (None, *verdict["facts"]["priors"]):
        names = list(dict.fromkeys(ranking["metric"] for ranking in verdict["rankings"] if ranking["prior"] == prior))
        title = f"Samples of {prior_name(prior)}" if prior else "Tokenizers"
        if names:
            found[title] = _table(
                verdict, lambda ranking, prior=prior: ranking["prior"] == prior, [(prior, name) for name in names]
            )
    return found


def _table(verdict: Mapping[str, Any], keep: Callable[..., bool], wanted: Sequence[tuple[str | None, str]]) -> dict[str, Any]:
    cells: dict[tuple[float, str], dict[tuple[str | None, str], dict[str, Any]]] = {}
    columns: dict[tuple[str | None, str], dict[str, Any]] = {}
    for ranking in filter(keep, verdict["rankings"]):
        key = (ranking["prior"], ranking["metric"])
        columns.setdefault(key, {name: ranking[name] for name in ("label", "better", "unit", "prior")})
        for row in ranking["rows"]:
            metric = _metric(ranking, row)
            cells.setdefault((ranking["bits"], row["label"]), {})[key] = {
                "value": number(metric),
                "error": error(metric),
                "sort": row["mean"],
                "letters": row["letters"] if ranking["metric"] in RANKED else "",
                "best": row["best"] and not all(other["best"] for other in ranking["rows"]),
                "n": row["n"],
                "seeds": len(row["values"]),
            }
    order = [key for key in wanted if key in columns]
    rows = [{"bits": bits, "label": label, "cells": [own.get(key) for key in order]} for (bits, label), own in cells.items()]
    rows.sort(key=lambda row: (row["bits"], row["cells"][-1] is None, row["cells"][-1]["sort"] if row["cells"][-1] else 0))
    counts = sorted({cell["n"] for row in rows for cell in row["cells"] if cell})
    return {"columns": [columns[key] for key in order], "rows": rows, "counts": counts}


def _metric(ranking: Mapping[str, Any], row: Mapping[str, Any]) -> Metric:
    return Metric(ranking["label"], row["mean"], row["n"], ranking["better"], row["standard_error"], None, ranking["unit"])


def _plus_minus(metric: Metric) -> str:
    return f" \u00b1 {error(metric)}" if error(metric) else ""


def _where(ranking: Mapping[str, Any]) -> str:
    name = ranking["label"].split(" (")[0]
    return (
        f"{name}, {prior_name(ranking['prior'])}, {ranking['bits']:g} bits"
        if ranking["prior"]
        else f"{name}, {ranking['bits']:g} bits"
    )


def _floor(benchmark: Benchmark, ranking: Mapping[str, Any]) -> float | None:
    """What real images score in a metric of samples."""
    if ranking["prior"] and benchmark.yardstick and f"real_{ranking['metric']}" in benchmark.yardstick.metrics:
        return benchmark.yardstick.metrics[f"real_{ranking['metric']}"].value
    return ranking["floor"] if ranking["prior"] else None


def _scatters(benchmark: Benchmark, verdict: Mapping[str, Any], color: Mapping[str, str]) -> list[str]:
    """rFD against gFD, per prior, with their rank correlation within each budget."""
    rows = {(r["prior"], r["bits"]): r for r in verdict["rankings"] if r["metric"] == "fd"}
    found = []
    for prior in benchmark.priors:
        points, said = [], []
        for bits in benchmark.bits:
            if (None, bits) not in rows or (prior, bits) not in rows:
                continue
            ours = {row["label"]: row for row in rows[None, bits]["rows"]}
            theirs = {row["label"]: row for row in rows[prior, bits]["rows"]}
            both = [label for label in ours if label in theirs]
            for label in both:
                x, y = ours[label], theirs[label]
                errors = {"x_error": x["standard_error"], "y_error": y["standard_error"]}
                points.append({"label": label, "bits": bits, "x": x["mean"], "y": y["mean"], **errors})
            rho = spearman([ours[label]["mean"] for label in both], [theirs[label]["mean"] for label in both])
            if rho is not None and len(both) > 2:
                said.append(f"\u03c1 {rho:.2f} at {bits:g} bits (n = {len(both)})")
        if points:
            title = f"{prior_name(prior)}: {', '.join(said)}"
            found.append(plots.scatter(points, "rFD", "gFD", title, color))
    return found


def _guidance(benchmark: Benchmark, color: Mapping[str, str]) -> list[str]:
    """FD over the guidance scale, and FD against IS along it: means over seeds, a line per method."""
    found = []
    for prior in benchmark.priors:
        for bits in benchmark.bits:
            curves: dict[str, list[Mapping[str, Any]]] = {}
            for job, result in benchmark.results(prior).items():
                if job.bits == bits:
                    curves.setdefault(job.label, []).extend(result.details.get("curve", ()))
            over = {label: _averaged(points, "guidance", "fd") for label, points in curves.items() if points}
            if not over:
                continue
            place = f"{prior_name(prior)}, {bits:g} bits"
            found.append(plots.lines(over, place, "guidance scale", "FD", color))
            traded = {
                label: [(x[1], y[1], y[2]) for x, y in zip(_averaged(points, "guidance", "is"), over[label], strict=True)]
                for label, points in curves.items()
                if points
            }
            found.append(plots.lines(traded, f"{place}: along the guidance", "IS", "FD", color))
    return found


def _averaged(points: Iterable[Mapping[str, Any]], x: str, y: str) -> list[tuple[float, float, float | None]]:
    """Mean of y at every x, and its standard error over seeds, or the one given where there is one seed."""
    at: dict[float, list[Mapping[str, Any]]] = {}
    for point in points:
        at.setdefault(point[x], []).append(point)
    return [
        (place, *_mean_and_error([own[y] for own in group], group[0].get("standard_error")))
        for place, group in sorted(at.items())
    ]


def _mean_and_error(values: Sequence[float], alone: float | None) -> tuple[float, float | None]:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, alone
    return mean, (sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)) ** 0.5


def _fronts(benchmark: Benchmark, verdict: Mapping[str, Any], color: Mapping[str, str]) -> list[str]:
    errors = {
        (r["prior"], r["bits"], row["label"]): row["standard_error"]
        for r in verdict["rankings"]
        if r["metric"] == "fd"
        for row in r["rows"]
    }
    found = []
    for front in verdict["fronts"]:
        points = [
            {
                **point,
                "x": point["cost"],
                "y": point["fd"],
                "y_error": errors.get((front["prior"], point["bits"], point["label"])),
            }
            for point in front["points"]
        ]
        if len({point["x"] for point in points}) > 1:
            found.append(plots.scatter(points, front["words"], "gFD", prior_name(front["prior"]), color, log=True))
    return found


def _inside(benchmark: Benchmark, color: Mapping[str, str]) -> dict[str, list[str]]:
    """What the codebooks look like, at the largest budget, of the first seed of each method."""
    shown = _first_seeds(benchmark)
    usage: dict[str, list[tuple[float, float, None]]] = {}
    pfd: dict[str, list[tuple[float, float, float | None]]] = {}
    maps, slopes = [], []
    for job, result in shown.items():
        details = result.details
        if details.get("usage") and details["usage"]["count"]:
            own = details["usage"]
            total = result.metrics["codes_used"].n
            usage[job.label] = [
                (100 * (rank + 1) / own["size"], count / total * own["size"], None)
                for rank, count in zip(own["rank"], own["count"], strict=True)
            ]
        if details.get("pfd"):
            pfd[job.label] = [(100 * point["share"], point["fd"], point["standard_error"]) for point in details["pfd"]]
        if details.get("geometry"):
            maps.append(plots.geometry(details["geometry"], job.label))
        if details.get("gersho"):
            own = details["gersho"]
            title = f"{job.label}: {own['slope']:.2f}, optimal {own['expected_slope']:.2f}"
            slopes.append(plots.gersho(own, title, color[job.label]))
    curves = []
    if usage:
        curves.append(plots.lines(usage, "Use of the codes", "% of the codes", "times even use", color, log=True, marker=None))
    if pfd:
        curves.append(plots.lines(pfd, "pFD: decoding spoilt tokens", "% of indices replaced", "FD", color))
    found = {job.label: result.details for job, result in shown.items()}
    unknown = [label for label, own in found.items() if own.get("geometry") and not own.get("gersho")]
    return {"curves": curves, "maps": maps, "slopes": slopes, "unknown_slopes": unknown}


def _training(benchmark: Benchmark, color: Mapping[str, str]) -> list[str]:
    """What methods report while they train, where more than the number of images is known."""
    found = []
    for name, title in TRAINING.items():
        series = {}
        for job, result in _first_seeds(benchmark).items():
            points = [(record["images"], record[name], None) for record in result.details.get("training", ()) if name in record]
            if len(points) > 1:
                series[job.label] = points
        if series:
            found.append(plots.lines(series, title, "images seen", title.lower(), color, marker=None))
    return found


def _first_seeds(benchmark: Benchmark) -> dict[Job, Result]:
    """The tokenizers at the largest budget, the first seed of each method."""
    found: dict[str, tuple[Job, Result]] = {}
    for job, result in benchmark.tokenizers.items():
        if job.bits == benchmark.bits[-1]:
            found.setdefault(job.label, (job, result))
    return dict(found.values())


def _yardstick(benchmark: Benchmark) -> list[dict[str, Any]]:
    metrics = benchmark.yardstick.metrics if benchmark.yardstick else {}
    return [
        {"label": metric.label, "which": name.split("_")[0], "value": number(metric), "error": error(metric), "n": metric.n}
        for name, metric in metrics.items()
    ]


def _provenance(benchmark: Benchmark) -> dict[str, Any]:
    results = {**benchmark.tokenizers, **benchmark.generations}
    first = next(iter(results.values()), benchmark.yardstick)
    assert first is not None  # collect() refuses a benchmark without results
    extractor = first.extractor
    facts = [
        ("Features", f"{extractor['name']}, sha256 {extractor['sha256'][:16]}\u2026, {extractor.get('resize', '')}"),
        ("Data", f"fingerprint {first.inputs.get('data_fingerprint')}"),
    ]
    for result in {result.reference.get("id"): result for result in results.values()}.values():
        facts.append(
            (f"Reference {result.reference.get('id')}", ", ".join(f"{k} {v}" for k, v in result.reference.items() if k != "id"))
        )
    for versions in {str(result.versions): result.versions for result in results.values()}.values():
        packages = ", ".join(f"{name} {version}" for name, version in versions.get("packages", {}).items() if version)
        facts.append(("Versions", f"Python {versions.get('python')}, {packages}, code {versions.get('code')}"))
        facts.append(("Machine", f"{versions.get('platform')}, {versions.get('device')}"))
    jobs = [
        {
            "job": f"{job.label}-{job.bits:g}b-s{job.seed}{f'-{job.prior}' if job.prior else ''}",
            "hashes": ", ".join(
                f"{k.removesuffix('_sha256')} {v[:12]}\u2026" for k, v in result.inputs.items() if k.endswith("_sha256")
            ),
            "started": result.started,
            "seconds": result.seconds,
            "command": " ".join(result.command),
        }
        for job, result in results.items()
    ]
    return {"facts": facts, "jobs": jobs}
