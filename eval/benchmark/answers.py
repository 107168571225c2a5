"""The verdict in plain words, each answer with the numbers that carry it: functions of the verdict's own statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.benchmark.words import counted

CERTAIN = 0.05
STATUSES = ("supported", "contradicted", "inconclusive")
CLAIMS = {
    "difference": "Does {subject} reconstruct better than {rivals} at {bits}?",
    "ratio": "Does {subject} use about half as many codes as {rivals} at {bits}?",
}
PUBLISHED = "the paper's own claim is of 16,384 codes at 128 pixels, from one training"
PRIORS = {"maskgit": "MaskGIT", "ar": "AR"}  # how a prior is written; others by their own name


def prior_name(prior: str | None) -> str:
    """A prior's name in a sentence."""
    return PRIORS.get(prior or "", prior or "all priors")


def answers(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Questions with an answer, a status and evidence, in the order in which a reader asks them.

    status: "decided" (one method or direction, beyond chance), "partly", "inconclusive", "supported", "contradicted" or
    "missing".
    """
    found = [_overall(verdict)]
    chief = [ranking for ranking in verdict["rankings"] if ranking["metric"] == "fd"]
    found += [_best(ranking) for ranking in chief if ranking["prior"]]
    found.append(_agreement(verdict))
    found.append(_predictors(verdict["predictors"]))
    found += _claims(verdict["claims"], verdict["facts"]["image_size"])
    found += [
        answer for answer in (_budget(verdict["budgets"], prior) for prior in (None, *verdict["facts"]["priors"])) if answer
    ]
    found.append(_retest(chief))
    return found


def _overall(verdict: Mapping[str, Any]) -> dict[str, Any]:
    ranking, facts = verdict["overall"], verdict["facts"]
    priors = _listed([prior_name(prior) for prior in facts["priors"]]) or "all priors"
    where = f"averaged over {_bits(facts['bits'])} and {priors}" if len(facts["bits"]) > 1 else f"at {_bits(facts['bits'])}"
    if len(facts["bits"]) == 1 and len(facts["priors"]) > 1:
        where += f", averaged over {priors}"
    question = f"Which tokenizer is best for generation, {where}?"
    if ranking is None:
        return _answer(question, "missing", "No two methods have been measured at every budget with every prior yet.")
    rows = ranking["rows"]
    best = [row for row in rows if row["best"]]
    basis = counted(ranking["seeds"], "seed")
    text = _standing(rows, best, lambda row: f"gFD {_percent(row)} from the average of all methods", basis, ranking)
    text += " " + _nearest(ranking, " %")
    if len(ranking["bits"]) > 1:
        text += " " + _between_budgets(ranking)
    if ranking["left_out"]:
        text += f" Left out, since not measured at every budget: {_listed(ranking['left_out'])}."
    evidence = [
        f"{row['label']}: {_percent(row)}, group {row['letters']}, rank {_range(row['rank'])}{_first(row)}" for row in rows
    ]
    evidence += [f"order at {bits} bits, by means: {', '.join(order)}" for bits, order in ranking["orders"].items()]
    return _answer(question, _status(rows, best), text, evidence)


def _between_budgets(ranking: Mapping[str, Any]) -> str:
    """Whether methods differ by the same at all budgets, which the average hides."""
    p, firsts = ranking["interaction"], {bits: order[0] for bits, order in ranking["orders"].items()}
    if p is None:
        return "Whether differences change between budgets is unknown."
    if p >= CERTAIN:
        return f"That differences change between budgets is not shown (F test, {_p(p)})."
    leaders = _listed([f"{first} at {bits} bits" for bits, first in firsts.items()])
    text = f"Differences change between budgets (F test, {_p(p)}): read each budget alone. The best means: {leaders}."
    if ranking["reversed"]:
        text += f" These change places beyond chance: {_listed([' with '.join(pair) for pair in ranking['reversed']])}."
    return text


def _agreement(verdict: Mapping[str, Any]) -> dict[str, Any]:
    question = "Does KID rank the tokenizers as FD does?"
    rows = [row for row in verdict["agreement"] if row["prior"]]
    if not rows:
        return _answer(question, "missing", "No KID has been measured beside an FD of the same samples.")
    place = lambda row: f"at {row['bits']:g} bits with {prior_name(row['prior'])}"  # noqa: E731
    other = [row for row in rows if not set(row["best"][0]) & set(row["best"][1])]
    means = [row for row in rows if row["first"][0] != row["first"][1]]
    opposite = [f"{' and '.join(pair)} {place(row)}" for row in rows for pair in row["opposite"]]
    known = [row["spearman"] for row in rows if row["spearman"] is not None]
    said = f" (\u03c1 of the means {min(known):.2f} to {max(known):.2f})" if known else ""
    if opposite:
        text = f"They contradict each other, each beyond chance, on {_listed(opposite)}{said}."
    elif other:
        text = f"Their leading groups have no method in common {_listed([place(row) for row in other])}{said}."
    else:
        text = f"No pair is told apart in opposite ways, and the leading groups have methods in common everywhere{said}."
    text += (
        f" The best mean is another one {_listed([place(row) for row in means])}."
        if means
        else " The best mean is the same one."
    )
    second = verdict["overall_kid"]
    if second and verdict["overall"]:
        first = verdict["overall"]["rows"][0]["label"]
        text += f" On average over all, KID has {second['rows'][0]['label']} first, FD {first}."
    evidence = [
        f"{place(row)}: FD {', '.join(row['best'][0])}; KID {', '.join(row['best'][1])}"
        + ("" if row["spearman"] is None else f"; \u03c1 {row['spearman']:.2f} of the means of {row['methods']} methods")
        for row in rows
    ]
    return _answer(question, "contradicted" if opposite else "partly" if other or means else "supported", text, evidence)


def _best(ranking: Mapping[str, Any]) -> dict[str, Any]:
    question = f"Which tokenizer is best for generation at {ranking['bits']:g} bits with {prior_name(ranking['prior'])}?"
    rows = ranking["rows"]
    best = [row for row in rows if row["best"]]
    seeds = sorted({seed for row in rows for seed in row["values"]})
    basis = f"{counted(len(seeds), 'seed')}, {ranking['n']:,} samples each"
    number = lambda row: f"{ranking['label']} {_value(row['mean'], row['standard_error'])}"  # noqa: E731
    text = _standing(rows, best, number, basis, ranking)
    if len(rows) > 1:
        text += " " + _nearest(ranking)
    evidence = [
        f"{row['label']}: {_value(row['mean'], row['standard_error'])}, group {row['letters']}, rank "
        f"{_range(row['rank'])}{_first(row)}"
        for row in rows
    ]
    if ranking["omnibus"] is not None:
        evidence.append(f"all methods equal: {_p(ranking['omnibus'])} (F test)")
    if ranking["equal_noise"] is not None and ranking["equal_noise"] < CERTAIN:
        evidence.append(
            f"the methods are not equally noisy (Bartlett, {_p(ranking['equal_noise'])}); a noisy pair counts at its own"
        )
    return _answer(question, _status(rows, best), text, evidence)


def _standing(rows: Sequence[Any], best: Sequence[Any], number: Any, basis: str, ranking: Mapping[str, Any]) -> str:
    """Who leads, and who cannot be told from the leader."""
    first = rows[0]
    if len(rows) == 1:
        return f"Only {first['label']} has been measured: {number(first)} ({basis})."
    if not ranking["df"]:
        return f"{first['label']} has the best mean ({number(first)}; {basis}), but the noise between trainings is unknown."
    others = len(rows) - len(best)
    if len(best) == 1:
        return f"{first['label']}: {number(first)} ({basis}), better than {_all(others)} beyond chance."
    if not others:
        return f"Inconclusive: no method can be told from {first['label']}, which has the best mean ({number(first)}; {basis})."
    ties = _listed([row["label"] for row in best[1:]])
    return (
        f"{first['label']} has the best mean ({number(first)}; {basis}) and cannot be told from {ties}; {_worse(others)} worse."
    )


def _nearest(ranking: Mapping[str, Any], unit: str = "") -> str:
    """The comparison of the first with the second, in numbers."""
    first, second = ranking["rows"][0]["label"], ranking["rows"][1]["label"]
    pair = next(pair for pair in ranking["pairs"] if {pair["a"], pair["b"]} == {first, second})
    if pair["low"] is None:
        return ""
    sign = 1 if pair["a"] == second else -1
    low, high = sorted((sign * pair["low"], sign * pair["high"]))
    interval = f"95\u00a0% interval of this pair alone {low:.3g} to {high:.3g}, Holm {_p(pair['holm'])}"
    gap = f"{sign * pair['difference']:.3g}{unit} higher ({interval})"
    return f"The next, {second}, is {gap}."


def _predictors(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    question = "Do cheap measures of the tokenizer predict how well its tokens generate?"
    if not rows:
        return _answer(question, "missing", "Fewer than six methods have both; a correlation of so few would say nothing.")
    priors = {row["prior"] for row in rows}
    over = [row for row in rows if row["prior"] == (None if None in priors else next(iter(priors)))]
    sure = [row for row in over if row["p"] * len(over) < CERTAIN]
    directed = [row for row in sure if row["better"] != "neither"]
    right = [row for row in directed if row["spearman"] > 0]
    wrong = [row for row in directed if row["spearman"] < 0]
    undirected = [row for row in sure if row["better"] == "neither"]
    n = f"{over[0]['n']} methods, {counted(over[0]['strata'], 'stratum', 'strata')} of budget and prior"
    if not sure:
        text = (
            f"Not shown: no measure ranks the methods as gFD does beyond chance ({n}, {counted(len(over), 'measure')} tried); "
            f"the highest is {_correlation(over[0])}."
        )
    else:
        found = f"These rank the methods as gFD does: {_listed([_correlation(row) for row in right])}" if right else (
            "None that has a direction ranks the methods as gFD does"
        )  # fmt: skip
        text = f"{found} ({n}; corrected for {counted(len(over), 'measure')})."
        if wrong:
            text += f" These point the wrong way: {_listed([_correlation(row) for row in wrong])}."
        if undirected:
            words = [f"{'higher' if row['spearman'] > 0 else 'lower'} with more {_correlation(row)}" for row in undirected]
            text += f" Of measures without a direction, gFD is {_listed(words)}."
        weak = [row for row in over if row not in sure]
        if weak:
            text += f" No evidence for {_listed([str(row['label']) for row in weak])}."
    evidence = [
        f"{prior_name(row['prior'])}, {row['label']}: \u03c1 {row['spearman']:.2f}, \u03c4 {row['kendall']:.2f}, "
        f"{_p(row['p'])}, n {row['n']}"
        for row in rows
    ]
    status = "decided" if len(sure) == len(over) else "partly" if sure else "inconclusive"
    return _answer(question, status, text, evidence)


def _claims(claims: Sequence[Mapping[str, Any]], size: int | None) -> list[dict[str, Any]]:
    """An answer for each method that carries the claims and each kind of claim, over its rivals and budgets."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for claim in claims:
        groups.setdefault((claim["subject"], claim["kind"]), []).append(claim)
    found = []
    for (subject, kind), group in groups.items():
        rivals = _listed(list(dict.fromkeys(claim["rival"] for claim in group)))
        budgets = list(dict.fromkeys(claim["bits"] for claim in group))
        where = _bits(budgets) + (f" and {size} pixels" if size else "")
        question = CLAIMS[kind].format(subject=subject, rivals=rivals, bits=where)
        counts = {status: sum(claim["status"] == status for claim in group) for status in STATUSES}
        said = [f"{status} in {count}" for status, count in counts.items() if count]
        alone = next((status for status, count in counts.items() if count == len(group)), None)
        text = f"{alone} at {where}" if alone else f"{_listed(said)} of {len(group)} comparisons at {where}"
        codes = _listed([f"{2**bits:,.0f}" for bits in budgets])
        text += f" ({codes} codes; {PUBLISHED})."
        found.append(_answer(question, alone or "partly", text[0].upper() + text[1:], [_claim(claim) for claim in group]))
    return found


def _claim(claim: Mapping[str, Any]) -> str:
    """One comparison in numbers."""
    a, b = claim["values"]
    place = f"{claim['status']} against {claim['rival']} at {claim['bits']:g} bits"
    together = f" together with the other {claim['family'] - 1}" if claim["family"] > 1 else ""
    interval = "interval unknown"
    if claim["low"] is not None and claim["high"] is not None:
        interval = f"95\u00a0% interval{together} {claim['low']:.3g} to {claim['high']:.3g}, adjusted {_p(claim['p'])}"
    if claim["kind"] == "difference":
        numbers = f"rFD {a:.4g} and {b:.4g}, difference {claim['estimate']:.3g} ({interval}"
    else:
        numbers = f"{a:,.0f} and {b:,.0f} active codes, ratio {claim['estimate']:.2f} ({interval}"
    return f"{place}: {numbers}, {counted(claim['seeds'], 'seed')})"


def _budget(rows: Sequence[Mapping[str, Any]], prior: str | None) -> dict[str, Any] | None:
    own = [row for row in rows if row["prior"] == prior]
    if not own:
        return None
    few, many = own[0]["few"], own[0]["many"]
    what = f"generation with {prior_name(prior)}" if prior else "reconstruction"
    better = [row for row in own if row["holm"] < CERTAIN and row["mean"] < 0]
    worse = [row for row in own if row["holm"] < CERTAIN and row["mean"] > 0]
    parts = []
    for group, verb in ((better, "better"), (worse, "worse")):
        if group:
            parts.append(f"{verb} for {_listed([row['label'] for row in group])}")
    rest = len(own) - len(better) - len(worse)
    if rest:
        parts.append(f"no change beyond chance for {counted(rest, 'method')}")
    evidence = [
        f"{row['label']}: {row['mean']:+.3g}"
        + ("" if row["low"] is None else f" ({row['low']:.3g} to {row['high']:.3g}, Holm {_p(row['holm'])})")
        for row in own
    ]
    status = "decided" if not rest and not (better and worse) else "partly" if better or worse else "inconclusive"
    text = (
        f"From {few:g} to {many:g} bits per token ({2**few:,.0f} to {2**many:,.0f} codes), distances get "
        + "; ".join(parts)
        + "."
    )
    if not better and not worse:
        text = f"From {few:g} to {many:g} bits per token, no method changes beyond chance."
    return _answer(f"What do more codes change in {what}?", status, text, evidence)


def _retest(chief: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    question = "Would the same ranking come out again?"
    rows = [(ranking, ranking["retest"]) for ranking in chief if ranking["retest"]]
    if not rows:
        return _answer(question, "missing", "Two seeds of at least three methods are needed to say.")
    words = [
        f"{ranking['bits']:g} bits, {prior_name(ranking['prior']) if ranking['prior'] else 'reconstruction'}: one seed against "
        f"another \u03c1 = {found['one_seed']:.2f}, mean of {found['seeds']} against that of as many new ones "
        f"{found['all_seeds']:.2f} (n = {found['methods']} methods)"
        for ranking, found in rows
    ]
    generation = [found for ranking, found in rows if ranking["prior"]] or [found for _, found in rows]
    one = sum(found["one_seed"] for found in generation) / len(generation)
    many = sum(found["all_seeds"] for found in generation) / len(generation)
    status = "decided" if many >= 0.8 else "partly" if many >= 0.5 else "inconclusive"
    seeds = generation[0]["seeds"]
    text = (
        f"The ranking of one seed agrees with that of another with \u03c1 = {one:.2f} on average; the mean of {seeds} seeds "
        f"would agree with that of {seeds} new ones with about {many:.2f} (Spearman and Brown). This is of new trainings "
        "measured on the same images."
    )
    return _answer(question, status, text, words)


def _answer(question: str, status: str, text: str, evidence: Sequence[str] = ()) -> dict[str, Any]:
    return {
        "question": question[0].upper() + question[1:],
        "status": status,
        "answer": text.strip(),
        "evidence": list(evidence),
    }


def _status(rows: Sequence[Any], best: Sequence[Any]) -> str:
    if len(rows) < 2 or len(best) == len(rows):
        return "inconclusive"
    return "decided" if len(best) == 1 else "partly"


def _value(value: float, error: float | None) -> str:
    """A mean and its standard error to the digit where it becomes uncertain."""
    if not error:
        return f"{value:.4g}"
    decimals = max(0, -int(f"{error:e}".split("e")[1]) + (f"{error:e}"[0] == "1"))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def _p(p: float) -> str:
    return "p\u00a0< 0.001" if p < 0.001 else f"p\u00a0= {p:.3f}" if p < 0.1 else f"p\u00a0= {p:.2f}"


def _percent(row: Mapping[str, Any]) -> str:
    error = row["standard_error"]
    return f"{row['mean']:+.1f}\u00a0%" if error is None else f"{row['mean']:+.1f} \u00b1 {error:.1f}\u00a0%"


def _correlation(row: Mapping[str, Any]) -> str:
    low, high = row["spearman_interval"]
    return f"{row['label']} (\u03c1 = {row['spearman']:.2f}, 95\u00a0% {low:.2f} to {high:.2f})"


def _first(row: Mapping[str, Any]) -> str:
    return "" if row["first"] is None else f", first in {100 * row['first']:.0f} % of bootstrap draws"


def _range(ranks: Sequence[int]) -> str:
    return f"{ranks[0]}" if ranks[0] == ranks[1] else f"{ranks[0]} to {ranks[1]}"


def _bits(bits: Sequence[float]) -> str:
    """Budgets in a sentence: 8 and 10 bits."""
    return f"{_listed([f'{value:g}' for value in bits])} bits per position"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _all(count: int) -> str:
    return {1: "the other one", 2: "both others"}.get(count, f"all {count} others")


def _worse(count: int) -> str:
    return "the other one is" if count == 1 else f"the other {count} are"
