"""The table of priors, and how to open a saved one."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.core.config import did_you_mean
from pipeline.core.errors import UserError
from stage2_prior.autoregressive import AutoregressivePrior
from stage2_prior.maskgit import MaskGITPrior
from stage2_prior.next_scale import NextScalePrior
from stage2_prior.prior import Prior

PRIORS: dict[str, type[Prior]] = {"maskgit": MaskGITPrior, "ar": AutoregressivePrior, "var": NextScalePrior}


def build_prior(name: str, **options: object) -> Prior:
    """The prior of this name with these arguments of its constructor.

    Raises UserError for an unknown name; TypeError for an unknown argument.
    """
    if name not in PRIORS:
        raise UserError(f"prior.name: {name}; {did_you_mean(name, PRIORS)}")
    return PRIORS[name](**options)


def open_prior(folder: str | Path) -> Prior:
    """The prior that `save_pretrained` wrote into this folder, whichever class it is of, in evaluation mode.

    Raises UserError where the folder holds none.
    """
    path = Path(folder) / Prior.config_name
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: no configuration of a prior; give a folder that stage2_prior/train.py exported") from None
    for kind in PRIORS.values():
        if kind.__name__ == name:
            try:
                return kind.from_pretrained(folder).eval()
            except Exception as error:  # safetensors and diffusers raise a dozen kinds for broken weights
                first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise UserError(f"{folder}: unreadable weights ({first}); export the prior again") from error
    raise UserError(f"{path}: _class_name {name}; {did_you_mean(str(name), (kind.__name__ for kind in PRIORS.values()))}")
