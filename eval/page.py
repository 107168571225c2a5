"""What the report shows, gathered from result files, pictures and training statistics into plain values for the template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from eval import plots
from eval.figures import Picture, grid, picture, place, world
from eval.pictures import read_sheet
from eval.results import Result, find_results, ranked
from eval.tables import error, generation_rows, number, plain, reconstruction_rows
from pipeline.core.errors import UserError
from pipeline.core.run_folder import read_stats
from pipeline.core.token_spec import TokenSpec

COLUMNS = 4  # tiles of a class side by side
QUIET = ("lr", "gradient_norm", "images")  # statistics that are not drawn
TITLES = {
    "pixel": "Tokenizer: pixel loss (mean absolute error)",
    "perceptual": "Tokenizer: perceptual loss",
    "perplexity": "Tokenizer: code perplexity",
    "codes_used": "Tokenizer: share of codes used",
    "loss": "Priors: training loss (nats per token)",
    "validation_bits_per_token": "Priors: validation bits per token",
}


@dataclass(frozen=True)
class Evaluation:
    """The results below one output folder of eval.run."""

    name: str
    folder: Path
    results: dict[str, Result]  # by folder name

    @property
    def titles(self) -> dict[str, str]:
        """What to call each prior: its kind, with its folder where two are of a kind."""
        kinds = {name: str(result.details["prior"]).removesuffix("Prior") for name, result in self.generations.items()}
        return {name: kind if [*kinds.values()].count(kind) == 1 else f"{kind} ({name})" for name, kind in kinds.items()}

    def result(self, name: str) -> Result | None:
        """The result in a folder of that name."""
        return self.results.get(name)

    @property
    def generations(self) -> dict[str, Result]:
        """The priors' results by folder name."""
        return {name: result for name, result in self.results.items() if result.part == "generation"}


def gather(folder: Path) -> dict[str, Any]:
    """All that the template needs, from the files below a folder; UserError where there is no result."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a finished run, such as runs/demo")
    by_parent: dict[Path, dict[str, Result]] = {}
    for path, result in find_results(folder).items():
        by_parent.setdefault(path.parent.parent, {})[path.parent.name] = result
    evaluations = [
        Evaluation(_name(parent, folder), parent, dict(sorted(results.items())))
        for parent, results in by_parent.items()
    ]
    return {
        "title": folder.resolve().name,
        "evaluations": [_evaluation(evaluation) for evaluation in evaluations],
        "curves": _curves(folder),
    }


def render(values: dict[str, Any]) -> str:
    """The page as HTML."""
    environment = Environment(loader=PackageLoader("eval", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": number, "error": error}
    return environment.get_template("report.html.j2").render(values)


def _evaluation(evaluation: Evaluation) -> dict[str, Any]:
    reconstruction = evaluation.result("reconstruction")
    generations = evaluation.generations
    for results in ([*generations.values()], [r for r in evaluation.results.values() if r.part == "yardstick"]):
        ranked(results, "fd")  # refuses rows that were measured in different ways
    columns = _columns(evaluation)
    return {
        "name": evaluation.name,
        "headline": _headline(evaluation),
        "any": next(iter(evaluation.results.values())),
        "real": evaluation.result("real"),
        "blurred": evaluation.result("blurred"),
        "decoded": evaluation.result("decoded"),
        "reconstruction": reconstruction,
        "pairs": _pairs(evaluation, reconstruction) if reconstruction else [],
        "reconstruction_rows": reconstruction_rows(reconstruction) if reconstruction else [],
        "usage": _usage(reconstruction) if reconstruction else None,
        "generations": generations,
        "titles": evaluation.titles,
        "priors": _priors(evaluation),
        "tokens": _tokens(reconstruction) if reconstruction else "",
        "nominal_bits": TokenSpec.from_dict(reconstruction.details["spec"]).bits_per_token if reconstruction else 0.0,
        "real_reference": next((result.reference for result in columns.values()), {}),
        "speeds": [_speed(evaluation.titles[name], result) for name, result in generations.items()],
        "columns": list(columns),
        "generation_rows": generation_rows(columns) if generations else [],
        "bars": _bars(columns) if generations else [],
        "samples": _samples(evaluation),
        "maps": _maps(evaluation),
        "geographic": _geographic(evaluation),
        "decodings": [_decoding(evaluation, name, result) for name, result in generations.items()],
        "provenance": _provenance(evaluation),
    }


def _name(parent: Path, folder: Path) -> str:
    """Where an evaluation lies, without the usual last folder."""
    inside = parent.relative_to(folder)
    parts = [folder.resolve().name, *inside.parts]
    return " / ".join(parts[:-1] if len(parts) > 1 and parts[-1] == "eval" else parts)


def _headline(evaluation: Evaluation) -> str:
    """What was evaluated, in a line."""
    reconstruction = evaluation.result("reconstruction")
    tokens = f"{reconstruction.details['quantizer']['name'].upper()} tokens" if reconstruction else ""
    return ", ".join(filter(None, [tokens, _priors(evaluation)])) or "Real images"


def _priors(evaluation: Evaluation) -> str:
    """The priors in a sentence: "MaskGIT and autoregressive priors"."""
    names = [title.replace("Autoregressive", "autoregressive") for title in evaluation.titles.values()]
    joined = " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
    return f"{joined} prior{'s' * (len(names) > 1)}" if names else ""


def _tokens(result: Result) -> str:
    """What an image becomes: how many tokens, on which grids, of how many bits."""
    spec = TokenSpec.from_dict(result.details["spec"])
    grids = " + ".join(f"{h}\u00d7{w}" for h, w in spec.scales)
    return f"{spec.t} tokens ({grids}) of {spec.bits_per_token:.1f} bits, {spec.bits_per_image:.0f} bits in all"


def _columns(evaluation: Evaluation) -> dict[str, Result]:
    """The columns of the table of samples, left to right: real images, the priors, the copies."""
    real = evaluation.result("real")
    # without training images beside the reference, the floor is that of the validation images already
    elsewhere = evaluation.result("validation") if real is None or real.details["split"] == "train" else None
    shown = {"Real images": real, "Real, elsewhere": elsewhere}
    shown |= {evaluation.titles[name]: result for name, result in evaluation.generations.items()}
    shown |= {"Decoded copy": evaluation.result("decoded"), "Blurred copy": evaluation.result("blurred")}
    return {title: result for title, result in shown.items() if result}


def _bars(columns: dict[str, Result]) -> list[str]:
    """The chief measures as bars."""
    drawn = []
    for name in ("fd", "kid", "group_accuracy"):
        shown = {title: result for title, result in columns.items() if name in result.metrics}
        if not shown:
            continue
        metrics = [result.metrics[name] for result in shown.values()]
        arrow = {"lower": "lower is better", "higher": "higher is better"}.get(metrics[0].better, "")
        drawn.append(
            plots.comparison(
                list(shown),
                [metric.value for metric in metrics],
                [metric.standard_error for metric in metrics],
                [number(metric) for metric in metrics],
                plain(metrics[0].label).replace(" (", f", {arrow}\n("),
                [result.part == "yardstick" for result in shown.values()],
            )
        )
    return drawn


def _usage(result: Result) -> str | None:
    usage = result.details.get("usage")
    if not usage or not usage["count"]:
        return None
    return plots.usage_curve(usage["rank"], usage["count"], usage["size"], result.metrics["codes_used"].n)


def _pairs(evaluation: Evaluation, result: Result) -> list[Picture]:
    """Original above reconstruction, one picture per pair."""
    shown = result.details["shown"]
    sheets = [_tiles(evaluation, "reconstruction", result, which, shown) for which in ("originals", "reconstructions")]
    return [
        picture(grid([original, copy], 1), shown["tile"], f"original and reconstruction {number}")
        for number, (original, copy) in enumerate(zip(*sheets, strict=True), 1)
    ]


def _samples(evaluation: Evaluation) -> dict[str, Any]:
    """Per group: the same classes as real images and from every prior."""
    sources = {"Real images": ("real", evaluation.result("real"))}
    sources |= {evaluation.titles[name]: (name, result) for name, result in evaluation.generations.items()}
    columns = {title: entry for title, entry in sources.items() if entry[1] and "samples" in entry[1].details}
    rows: dict[str, dict[str, Picture]] = {}
    for title, (name, result) in columns.items():
        assert result is not None
        layout = result.details["samples"]
        counts = [len(labels) for labels in layout["rows"].values()]
        tiles = iter(_tiles(evaluation, name, result, "samples", {"tile": layout["tile"], "count": sum(counts)}))
        for group, labels in layout["rows"].items():
            strip = [next(tiles) for _ in labels]
            rows.setdefault(group, {})[title] = picture(grid(strip, COLUMNS), layout["tile"], f"{title}: {', '.join(labels)}")
    return {"columns": list(columns), "rows": rows}


def _maps(evaluation: Evaluation) -> dict[str, Picture]:
    """One picture of every class at its place on the Earth, where the classes' names end in coordinates."""
    maps = {}
    for name, result in {"real": evaluation.result("real"), **evaluation.generations}.items():
        if result is None or "classes" not in result.details:
            continue
        layout = result.details["classes"]
        places = [place(text) for text in layout["names"]]
        tiles = _tiles(evaluation, name, result, "classes", {"tile": layout["tile"], "count": len(places)})
        title = "Real images" if name == "real" else evaluation.titles[name]
        if None not in places and len(places) > 1:
            whole = world([found for found in places if found], tiles)
            maps[title] = picture(whole, whole.size, f"{title}, each at its place")
        else:
            sheet = grid(tiles, 16)
            maps[title] = picture(sheet, sheet.size, f"{title}, one of every class")
    return maps


def _geographic(evaluation: Evaluation) -> bool:
    real = evaluation.result("real")
    return bool(real and "classes" in real.details and all(map(place, real.details["classes"]["names"])))


def _speed(title: str, result: Result) -> str:
    """Size and speed of a prior in words."""
    details = result.details
    size, rate = details["parameters"] / 1e6, details["images_per_second"]
    return f"{title}: {size:.1f} million parameters, {rate:g} images per second"


def _decoding(evaluation: Evaluation, name: str, result: Result) -> dict[str, Any]:
    layout = result.details["decoding"]
    steps = layout["steps"]
    tiles = _tiles(evaluation, name, result, "decoding", {"tile": layout["tile"], "count": len(steps) * len(layout["names"])})
    rows = []
    for start, label in enumerate(layout["names"]):
        row = zip(tiles[start * len(steps) : (start + 1) * len(steps)], steps, strict=True)
        rows.append((label, [picture(tile, layout["tile"], f"{label} after step {step}") for tile, step in row]))
    return {"title": evaluation.titles[name], "steps": steps, "of": layout["of"], "tokens": layout["tokens"], "rows": rows}


def _provenance(evaluation: Evaluation) -> list[tuple[str, str]]:
    first = next(iter(evaluation.results.values()))
    versions = first.versions
    facts = [
        ("Features", f"{first.extractor['name']}, sha256 {first.extractor['sha256'][:16]}…, {first.extractor['resize']}"),
        ("Data", f"fingerprint {first.inputs['data_fingerprint']}"),
        *{
            (f"Reference {result.reference['id']}", ", ".join(f"{k} {v}" for k, v in result.reference.items() if k != "id"))
            for result in evaluation.results.values()
        },
    ]
    for name, result in evaluation.results.items():
        hashes = [f"{k.removesuffix('_sha256')} {v[:16]}…" for k, v in result.inputs.items() if k.endswith("_sha256")]
        seeds = f"seeds {result.details['seeds'][0]} to {result.details['seeds'][1] - 1}" if "seeds" in result.details else ""
        facts.append((name, ", ".join(filter(None, [*hashes, seeds, f"{result.seconds:.0f} s", result.started]))))
    packages = ", ".join(f"{name} {version}" for name, version in versions.get("packages", {}).items() if version)
    facts.append(("Versions", f"Python {versions.get('python')}, {packages}, code {versions.get('code')}"))
    facts.append(("Machine", f"{versions.get('platform')}, {versions.get('device')}"))
    facts.append(("Command", " ".join(first.command)))
    return facts


def _curves(folder: Path) -> list[str]:
    """A plot per statistic, with a line for every run that reports it."""
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for file in sorted(folder.rglob("stats.jsonl")):
        for record in read_stats(file.parent):
            for key, value in record.items():
                if key not in QUIET and isinstance(value, (int, float)):
                    series.setdefault(key, {}).setdefault(file.parent.name, []).append((record["images"], value))
    order = [*TITLES, *sorted(set(series) - set(TITLES))]
    return [plots.training_curves(series[key], TITLES.get(key, key)) for key in order if key in series]


def _tiles(evaluation: Evaluation, name: str, result: Result, which: str, layout: dict[str, Any]) -> list[Image.Image]:
    y, x = layout["tile"]
    return read_sheet(evaluation.folder / name / result.pictures[which], (y, x), layout["count"])


