"""The verdict as Markdown, fit for a README or a paper's appendix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.benchmark.answers import prior_name
from eval.benchmark.page import headline, main_table

ARROWS = {"lower": " \u2193", "higher": " \u2191", "neither": ""}


def summary(verdict: Mapping[str, Any]) -> str:
    """Headline, answers, the main table, predictors, caveats; every number with its error and n."""
    facts = verdict["facts"]
    lines = [f"# {verdict['name']}: {headline(verdict)}", ""]
    lines += [
        f"{len(facts['labels'])} tokenizers, {_counted(facts['bits'], 'bit budget')}, {_counted(facts['seeds'], 'seed')}, "
        f"{_counted(facts['priors'], 'prior')}; {facts['tokenizers']} tokenizers and {facts['generations']} priors measured"
        + (f", {len(facts['missing'])} measurements missing." if facts["missing"] else "."),
        "",
    ]
    for answer in verdict["answers"]:
        lines += [f"**{answer['question']}** ({answer['status']}) {answer['answer']}", ""]
    lines += _main(verdict)
    lines += _predictors(verdict)
    lines += ["What this benchmark cannot say:", "", *(f"- {line}" for line in verdict["caveats"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _main(verdict: Mapping[str, Any]) -> list[str]:
    table = main_table(verdict)
    heads = [
        (f"{prior_name(column['prior'])} " if column["prior"] else "")
        + column["label"].split(" (")[0]
        + ARROWS[column["better"]]
        + (f" ({column['unit']})" if column["unit"] else "")
        for column in table["columns"]
    ]
    lines = [_row(["method", "bits", *heads]), _row(["---", *["---:"] * (1 + len(heads))])]
    for row in table["rows"]:
        lines.append(_row([f"`{row['label']}`", f"{row['bits']:g}", *map(_cell, row["cells"])]))
    seeds = len(verdict["facts"]["seeds"])
    samples = verdict["facts"]["samples"]
    note = (
        f"Means over {seeds} seeds \u00b1 one standard error of the mean"
        + (f"; every gFD of {samples:,} samples" if samples else "")
        + f"; distances are {verdict['facts']['distance'] or 'not measured'}. Bold: the best, and what cannot be "
        "told from it at the same budget. Methods that share a letter cannot be told apart here (Holm, 0.05)."
    )
    return [*lines, "", note, ""]


def _predictors(verdict: Mapping[str, Any]) -> list[str]:
    rows = verdict["predictors"]
    if not rows:
        return []
    lines = [
        "Rank correlation with gFD within budgets (1: ranks as gFD does), with 95 % intervals over methods:",
        "",
        _row(["predictor", "prior", "Spearman", "Kendall", "p", "n"]),
        _row(["---", "---", "---:", "---:", "---:", "---:"]),
    ]
    for row in rows:
        values = [
            f"{row[name]:.2f} ({row[f'{name}_interval'][0]:.2f} to {row[f'{name}_interval'][1]:.2f})"
            for name in ("spearman", "kendall")
        ]
        p = f"{row['p']:.3f}" if row["p"] >= 0.001 else "< 0.001"
        lines.append(_row([row["label"].split(" (")[0], prior_name(row["prior"]), *values, p, str(row["n"])]))
    return [*lines, ""]


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "\u2013"
    value = cell["value"] + (f" \u00b1 {cell['error']}" if cell["error"] else "")
    return (f"**{value}**" if cell["best"] else value) + (f" {cell['letters']}" if cell["letters"] else "")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _counted(values: list[Any], what: str) -> str:
    return f"{len(values)} {what}{'s' * (len(values) != 1)}"
