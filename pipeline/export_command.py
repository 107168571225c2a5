"""What `python -m pipeline.export` does once its command line is read."""

from __future__ import annotations

from pathlib import Path

from pipeline.api import load_pipeline, load_prior
from pipeline.core.errors import UserError
from pipeline.core.files import new_folder
from pipeline.generator import ImageGenerator
from stage2_prior.autoregressive import AutoregressivePrior
from stage2_prior.causal_lm import MODULE, save_transformers

EVALUATION = "eval"  # where eval.run puts its results, beside the runs
MARKERS = ("model_index.json", f"{MODULE}.py")  # a folder with one of these is an earlier export, which may be replaced


def export_pipeline(path: Path, out: Path, results: Path | None, dry_run: bool) -> None:
    """Write a diffusers pipeline, with the numbers of its own weights in its model card."""
    model = load_pipeline(path)
    require_replaceable(out)
    nearby = path.resolve().parent / EVALUATION
    if dry_run:
        print(f"{path}: {model.prior.spec}\n-> {out}, with the numbers of {results or nearby}")
        return
    with new_folder(out) as aside:
        if results is not None:
            model.save_pretrained(aside, name=out.name, results=results)
            said = f"with the numbers of {results}"
        else:
            said = _save_with_nearby(model, aside, out.name, nearby)
    print(f"{out}: written, {said}; load it with pipeline.api.load_pipeline or DiffusionPipeline.from_pretrained")


def export_language_model(path: Path, out: Path, dry_run: bool) -> None:
    """Write an autoregressive prior as a causal language model; UserError for another kind of prior."""
    prior = load_prior(path)
    if not isinstance(prior, AutoregressivePrior):
        raise UserError(f"{path}: a {type(prior).__name__}; only the autoregressive prior is a causal language model")
    require_replaceable(out)
    if dry_run:
        print(f"{path}: {prior.spec}\n-> {out}, as a causal language model")
        return
    with new_folder(out) as aside:
        save_transformers(prior, aside)
    print(f"{out}: written; load it with AutoModelForCausalLM.from_pretrained({str(out)!r}, trust_remote_code=True)")


def require_replaceable(out: Path) -> None:
    """Raises UserError where a folder is there that is not empty and no earlier export: writing would delete what it holds."""
    out = out.resolve()
    if out in (Path.cwd(), *Path.cwd().parents):
        raise UserError(f"--out {out}: holds the folder that you work in; give a folder of its own")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: a file; give a folder")
    if out.exists() and any(out.iterdir()) and not any((out / marker).exists() for marker in MARKERS):
        raise UserError(f"--out {out}: holds other things, which an export would replace; give a new folder")


def _save_with_nearby(model: ImageGenerator, folder: Path, name: str, nearby: Path) -> str:
    """Save with the results beside the run, where there are any of these weights."""
    try:
        model.save_pretrained(folder, name=name, results=nearby)
    except UserError as none:
        model.save_pretrained(folder, name=name)
        return f"without numbers ({none})"
    return f"with the numbers of {nearby}"
