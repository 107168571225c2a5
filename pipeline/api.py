"""The public interface: what evaluation, notebooks and other programs import.

    from pipeline.api import load_pipeline
    image = load_pipeline("runs/demo/maskgit")(class_labels=[207], seeds=[0]).images[0]
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.core.config import load_config
from pipeline.core.data.images import ImageData
from pipeline.core.data.labels import find_classes
from pipeline.core.data.sources import load_data
from pipeline.core.errors import UserError
from pipeline.core.files import sha256
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

WEIGHTS = "diffusion_pytorch_model.safetensors"


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a run, or of a folder that `save_pretrained` wrote, in evaluation mode.

    Raises UserError where there is none, the run has not finished, or a file is damaged.
    """
    folder = tokenizer_folder(path)
    _require_weights(folder)
    try:
        return Tokenizer.from_pretrained(folder).eval()
    except Exception as error:  # safetensors, json and diffusers raise a dozen kinds for damaged files
        raise UserError(f"{folder}: damaged tokenizer ({_first_line(error)}); train or copy it again") from None


def load_prior(path: str | Path) -> Prior:
    """The prior of a run, or of a folder that `save_pretrained` wrote, in evaluation mode.

    Raises UserError where there is none, the run has not finished, or a file is damaged.
    """
    folder = prior_folder(path)
    _require_weights(folder)
    return open_prior(folder)


def load_pipeline(path: str | Path) -> ImageGenerator:
    """Tokenizer and prior together: of a prior's run (with the tokenizer that made its tokens), or of a saved pipeline.

    Raises UserError where a part is missing or damaged, or the tokenizer has changed since the tokens were made.
    """
    path = Path(path)
    if (path / "model_index.json").exists():
        for part in ("tokenizer", "prior"):
            _require_weights(path / part)
        try:
            return ImageGenerator.from_pretrained(path)
        except UserError:
            raise
        except Exception as error:  # as in load_tokenizer
            raise UserError(f"{path}: damaged pipeline ({_first_line(error)}); save or copy it again") from None
    folder = prior_folder(path)
    identity = read_identity(folder / "tokens.json")
    tokenizer = load_tokenizer(identity.tokenizer)
    found = weights_sha256(tokenizer_folder(identity.tokenizer))
    if found != identity.tokenizer_sha256:
        raise UserError(
            f"{identity.tokenizer}: this tokenizer ({found[:12]}) is not the one that {path} learned the tokens of "
            f"({identity.tokenizer_sha256[:12]}); tokenize and train the prior again"
        )
    return ImageGenerator(tokenizer, load_prior(folder), identity.class_names, identity.class_ids, identity.groups)


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


def _require_weights(folder: Path) -> None:
    for name in ("config.json", WEIGHTS):
        file = folder / name
        if not file.exists():
            raise UserError(f"{file}: missing; export or copy the model again")
        if file.stat().st_size == 0:
            raise UserError(f"{file}: empty (0 bytes); export or copy the model again")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
