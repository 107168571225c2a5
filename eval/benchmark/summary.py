"""The verdict as Markdown, fit for a README or a paper's appendix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.benchmark.answers import prior_name
from eval.benchmark.page import headline, main_table
from eval.benchmark.words import counted

ARROWS = {"lower": " \u2193", "higher": " \u2191", "neither": ""}


def summary(verdict: Mapping[str, Any]) -> str:
    """Headline, answers, the main table, predictors, caveats; every number with its error and n."""
    facts = verdict["facts"]
    lines = [f"# {verdict['name']}: {headline(verdict)}", ""]
    lines += [
        f"{counted(len(facts['labels']), 'tokenizer')}, {counted(len(facts['bits']), 'bit budget')}, "
        f"{counted(len(facts['seeds']), 'seed')}, "
        f"{counted(len(facts['priors']), 'prior')}; {counted(facts['tokenizers'], 'training')} of tokenizers and "
        f"{facts['generations']} of priors measured"
        + (f", {counted(len(facts['missing']), 'measurement')} missing." if facts["missing"] else "."),
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
        + column["label"]
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
        (f"Means over {seeds} seeds \u00b1 one standard error" if seeds > 1 else "One seed each, so that errors are unknown")
        + (f"; every gFD of {samples:,} samples" if samples else "")
        + f"; distances are {verdict['facts']['distance'] or 'not measured'}. Bold: the best, and what cannot be "
        "told from it at the same budget; measures without an arrow have no best. Methods that share a letter cannot be told "
        "apart by that distance here (Holm, 0.05; 5 % is the chance of a false difference in each column and budget)."
    )
    return [*lines, "", note, ""]


def _predictors(verdict: Mapping[str, Any]) -> list[str]:
    rows = verdict["predictors"]
    if not rows:
        return []
    lines = [
        "Rank correlation with gFD within budgets, with 95 % intervals over methods, each alone. 1: ranks as gFD does; for a "
        "measure without a direction (marked \u00b1): gFD is the higher the more there is of it. p is not corrected for the "
        f"number of measures ({len({row['metric'] for row in rows})}):",
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
        sign = " (\u00b1)" if row["better"] == "neither" else ""
        lines.append(_row([row["label"] + sign, prior_name(row["prior"]), *values, p, str(row["n"])]))
    return [*lines, ""]


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "\u2013"
    value = cell["value"] + (f" \u00b1 {cell['error']}" if cell["error"] else "")
    return (f"**{value}**" if cell["best"] else value) + (f" {cell['letters']}" if cell["letters"] else "")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
