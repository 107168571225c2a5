"""What a saved pipeline has beside its weights: the code that lets diffusers load it, and a model card with its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers.utils.constants import SAFETENSORS_WEIGHTS_NAME
from huggingface_hub import EvalResult, ModelCardData

from pipeline.core.errors import UserError
from pipeline.core.files import read_json, sha256
from stage1_tokenizer.tokenizer import Tokenizer
from stage2_prior.prior import Prior

RESULT = ("lgq-evaluation", 1)  # format and version of the files that eval.run writes; eval/results.py describes them
TASK = "unconditional-image-generation"  # the Hub's nearest name of a task: it has none for images of classes
PARTS = {"generation": "Samples", "reconstruction": "Reconstructions, which bound what samples can be"}
NEEDED = {"generation": ("prior_sha256", "tokenizer_sha256"), "reconstruction": ("tokenizer_sha256",)}
CODE = '''"""Lets diffusers load this folder by itself, with the package lgq-pipeline installed:

    DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
"""

try:
    import pipeline.generator as generator
except ImportError as error:
    raise ImportError("this folder needs the package lgq-pipeline, and a Python that was not started inside it") from error

ImageGenerator = generator.ImageGenerator
'''
USE = """
## How to use it

With the package lgq-pipeline installed, and without a network:

```python
from pipeline.api import load_pipeline

generator = load_pipeline("{folder}")
images = generator(class_labels={labels}, seeds=[0, 1]).images
```

`ImageGenerator.from_pretrained` loads the folder too, and so does diffusers by itself:

```python
from diffusers import DiffusionPipeline

generator = DiffusionPipeline.from_pretrained("{folder}", custom_pipeline="{folder}", trust_remote_code=True)
```

A label is a number or a name. The same seed gives the same image, alone or in any batch. `inpaint`, `outpaint`, `vary` and
`interpolate` edit.

## Limits

- It makes images of {x} x {y} pixels of the classes that it was trained on, and knows nothing of others, nor of text.
- It repeats what its training images are like, their mistakes and their leanings included. Nothing filters what it makes.
- A distance between features is as good as the network that measured it, which every number names. Only FID and IS without
  another network's name are of Inception-v3 and comparable with the literature's, and only under its protocol.
"""


def find_results(results: Path, folder: Path) -> list[dict[str, Any]]:
    """What `eval.run` found of the weights in a saved folder: its samples first, then its tokenizer's reconstructions.

    Raises UserError where there is nothing of their samples.
    """
    own = {f"{part}_sha256": sha256(folder / part / SAFETENSORS_WEIGHTS_NAME) for part in ("prior", "tokenizer")}
    found = [read_json(file) for file in sorted(results.rglob("result.json"))]
    for value in found:
        if (value.get("format"), value.get("version")) != RESULT:
            raise UserError(f"{results}: a result that is not of this version of eval.run; delete it and run eval.run again")
    mine = [
        value
        for part, needed in NEEDED.items()
        for value in found
        if value["part"] == part and all(value["inputs"].get(key) == own[key] for key in needed)
    ]
    if not any(value["part"] == "generation" for value in mine):
        raise UserError(f"{results}: none of its {len(found)} results is of these weights; run eval.run on this prior first")
    return mine


def model_card(
    name: str, tokenizer: Tokenizer, prior: Prior, class_names: list[str] | None, results: list[dict[str, Any]]
) -> str:
    """The text of a README.md: YAML for the Hub, what this is, its numbers, how to use it, its limits."""
    kind, quantizer = type(prior).__name__, tokenizer.config["quantizer_config"]["name"]
    y, x = tokenizer.spec.image_size
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag=TASK,
        tags=["lgq-pipeline", "image-generation", "class-conditional", "image-tokenizer", kind, quantizer],
        model_name=name,
        eval_results=[entry for result in results for entry in _entries(result)] or None,
    )
    classes = prior.config["num_classes"]
    shown = class_names[:2] if class_names else list(range(min(2, classes)))
    size = {model: sum(parameter.numel() for parameter in model.parameters()) / 1e6 for model in (tokenizer, prior)}
    lines = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {name}\n",
        f"Images of {x} x {y} pixels, of {classes} classes{f', such as {shown[0]}' if class_names else ''}.",
        f"A tokenizer with the quantizer `{quantizer}` ({size[tokenizer]:.1f} M parameters) makes an image of",
        f"{tokenizer.spec}; {kind} ({size[prior]:.1f} M) is the prior of these tokens.\n",
        "## Numbers\n",
        *(_table(result) for result in results),
    ]
    if not results:
        lines.append('None were given when this was saved; `save_pretrained(FOLDER, results="RUN/eval")` puts them here.')
    return "\n".join(lines) + "\n" + USE.format(folder=name, labels=shown, x=x, y=y)


def _entries(result: dict[str, Any]) -> list[EvalResult]:
    reference = result["reference"]
    return [
        EvalResult(
            task_type=TASK,
            task_name=PARTS[result["part"]],
            dataset_type="image-classes",
            dataset_name=f"the images of its training, fingerprint {reference['data_fingerprint']}",
            dataset_split=reference["split"],
            metric_type=name,
            metric_name=metric["label"],
            metric_value=metric["value"],
            metric_args={"images": metric["n"], "standard_error": metric["standard_error"]},
        )
        for name, metric in result["metrics"].items()
    ]


def _table(result: dict[str, Any]) -> str:
    reference, extractor = result["reference"], result["extractor"]
    rows = [f"{PARTS[result['part']]}:\n", "| | value | standard error | images | real images |", "|---|---|---|---|---|"]
    for metric in result["metrics"].values():
        error, floor = (_number(metric.get(key)) for key in ("standard_error", "floor"))
        rows.append(f"| {metric['label']} | {_number(metric['value'])} | {error} | {metric['n']} | {floor} |")
    how = result["inputs"].get("sampling")
    options = f" Sampled with {', '.join(f'{key} {value}' for key, value in how.items() if value is not None)}." if how else ""
    rows.append(
        f"\nAgainst {reference['n']} images ({reference['split']}, fingerprint {reference['data_fingerprint']}); features of "
        f"{extractor['name']} (sha256 {extractor['sha256'][:16]}…); {result['started'][:10]}, code "
        f"{result['versions'].get('code', 'unknown')}.{options}\n"
    )
    return "\n".join(rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
