"""The public interface: what evaluation, notebooks and other programs import.

    from pipeline.api import load_pipeline
    image = load_pipeline("runs/demo/maskgit")(class_labels=[207], seeds=[0]).images[0]
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.core.config import load_config
from pipeline.core.data.images import ImageData
from pipeline.core.data.labels import find_classes
from pipeline.core.data.sources import load_data
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, sha256
from pipeline.core.saved_model import WEIGHTS, load_saved
from pipeline.core.token_spec import TokenSpec
from pipeline.core.token_store import TokenStore, read_identity
from pipeline.generator import ImageGenerator
from pipeline.pixels import to_uint8
from stage1_tokenizer.backbone import token_grid
from stage1_tokenizer.config import Stage1Config
from stage1_tokenizer.quantizers import build_quantizer
from stage1_tokenizer.quantizers.catalogue import at_budget, normalised_latents
from stage1_tokenizer.tokenizer import Tokenizer
from stage2_prior.config import Stage2Config
from stage2_prior.prior import Mixture, Prior
from stage2_prior.priors import open_prior
from stage2_prior.sampling import RECOMMENDED, require_options

__all__ = [
    "ImageData",
    "ImageGenerator",
    "Mixture",
    "Prior",
    "Stage1Config",
    "Stage2Config",
    "TokenSpec",
    "TokenStore",
    "Tokenizer",
    "at_budget",
    "build_quantizer",
    "find_classes",
    "find_runs",
    "load_config",
    "load_data",
    "load_pipeline",
    "load_prior",
    "load_tokenizer",
    "normalised_latents",
    "prior_folder",
    "to_uint8",
    "token_grid",
    "tokenizer_folder",
    "weights_sha256",
]


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a run, or of a folder that `save_pretrained` wrote, in evaluation mode.

    Raises UserError where there is none, the run has not finished, or a file is damaged.
    """
    return load_saved(Tokenizer, tokenizer_folder(path))


def load_prior(path: str | Path) -> Prior:
    """The prior of a run, or of a folder that `save_pretrained` wrote, in evaluation mode.

    Raises UserError where there is none, the run has not finished, or a file is damaged.
    """
    return open_prior(prior_folder(path))


def load_pipeline(path: str | Path) -> ImageGenerator:
    """Tokenizer and prior together: of a prior's run (with the tokenizer that made its tokens), or of a saved pipeline.

    Raises UserError where a part is missing or damaged, or the tokenizer has changed since the tokens were made.
    """
    path = Path(path)
    index = path / "model_index.json"
    if index.exists():
        # part by part: diffusers would import the modules that the file names, and run the code beside it
        described = read_json(index)
        names = described if isinstance(described, dict) else {}
        lists = [names.get(kind) for kind in ("class_names", "class_ids", "groups")]
        return _assembled(load_tokenizer(path / "tokenizer"), load_prior(path / "prior"), lists, names.get("sampling"), index)
    folder = prior_folder(path)
    identity = read_identity(folder / "tokens.json")
    tokenizer = load_tokenizer(identity.tokenizer)
    found = weights_sha256(tokenizer_folder(identity.tokenizer))
    if found != identity.tokenizer_sha256:
        raise UserError(
            f"{identity.tokenizer}: this tokenizer ({found[:12]}) is not the one that {path} learned the tokens of "
            f"({identity.tokenizer_sha256[:12]}); tokenize and train the prior again"
        )
    lists = [identity.class_names, identity.class_ids, identity.groups]
    recommended = folder / RECOMMENDED
    sampling = read_json(recommended) if recommended.exists() else None
    return _assembled(tokenizer, load_prior(folder), lists, sampling, folder / "tokens.json")


def _assembled(tokenizer: Tokenizer, prior: Prior, names: Sequence[Any], sampling: Any, place: Path) -> ImageGenerator:
    """A pipeline of two parts, with the names, ids and groups of its classes that a file tells, and its options of sampling.

    Raises UserError where they are no lists of texts, one for each class, or no options that the prior's sampler has, and where
    the parts do not belong together.
    """
    classes = prior.config["num_classes"]
    for held in names:
        if held is not None and not (isinstance(held, list) and all(isinstance(name, str) for name in held)):
            raise UserError(f"{place}: its classes have no names in a list; save or copy it again")
        if held is not None and len(held) != classes:
            raise UserError(f"{place}: names {len(held)} classes, the prior knows {classes}; save or copy it again")
    require_options(f"{place.parent}: sampling", prior.options_type, sampling)
    class_names, class_ids, groups = names
    return ImageGenerator(tokenizer, prior, class_names, class_ids, groups, sampling)


def find_runs(root: str | Path, part: str) -> list[Path]:
    """Finished runs below a folder that have the part "tokenizer", "prior" or "tokens", the newest first."""
    marker = {"tokenizer": "tokenizer/config.json", "prior": "prior/config.json", "tokens": "store.json"}[part]
    root = Path(root)
    depth = len(Path(marker).parts)
    found = [Path(*file.parts[:-depth]) for file in root.glob(f"**/{marker}") if ".partial" not in str(file)]
    return sorted(found, key=lambda run: os.path.getmtime(run / marker), reverse=True)


def tokenizer_folder(path: str | Path) -> Path:
    """Where the tokenizer of a run, or the tokenizer itself, lies; UserError where it is not there."""
    return _part(Path(path), "tokenizer", "stage1_tokenizer/train.py")


def prior_folder(path: str | Path) -> Path:
    """Where the prior of a run, or the prior itself, lies; UserError where it is not there."""
    return _part(Path(path), "prior", "stage2_prior/train.py")


def weights_sha256(folder: Path) -> str:
    """The sha256 of a saved model's weights."""
    return sha256(folder / WEIGHTS)


def _part(path: Path, part: str, command: str) -> Path:
    for folder in (path / part, path):
        if (folder / "config.json").exists() or (folder / WEIGHTS).exists():
            return folder
    if (path / "config.yaml").exists():
        raise UserError(f"{path}: this run has not finished; run its {command} again to go on")
    if path.exists():
        raise UserError(f"{path}: holds no {part}; give the folder of a finished run of {command}")
    near = ", ".join(str(run) for run in find_runs("runs", part)[:3]) if Path("runs").exists() else ""
    raise UserError(f"{path}: no such run; {f'finished ones are {near}' if near else f'train one with {command}'}")
