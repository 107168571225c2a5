"""The table of priors, and how to open a saved one."""

from __future__ import annotations

import inspect
from pathlib import Path

from pipeline.core.config import did_you_mean, require_kinds
from pipeline.core.errors import UserError
from pipeline.core.saved_model import CONFIG, load_saved, read_config, require_saved
from stage2_prior.autoregressive import AutoregressivePrior
from stage2_prior.maskgit import MaskGITPrior
from stage2_prior.next_scale import NextScalePrior
from stage2_prior.prior import Prior

PRIORS: dict[str, type[Prior]] = {"maskgit": MaskGITPrior, "ar": AutoregressivePrior, "var": NextScalePrior}

SHARES = {"dropout": 0.99, "class_dropout": 1, "label_smoothing": 1}


def build_prior(name: str, **options: object) -> Prior:
    """The prior of this name with these arguments of its constructor.

    Raises UserError for an unknown name; TypeError for an unknown argument.
    """
    if name not in PRIORS:
        raise UserError(f"prior.name: {name}; {did_you_mean(name, PRIORS)}")
    known = inspect.signature(PRIORS[name]).parameters
    try:
        require_kinds("prior", PRIORS[name].__init__, {option: value for option, value in options.items() if option in known})
    except ValueError as error:
        raise UserError(f"config.{error}") from None
    for option, most in SHARES.items():
        if not 0 <= options.get(option, 0) <= most:  # pyright: ignore[reportOperatorIssue]
            raise UserError(f"config.prior.{option}: {options[option]}; give a share from 0 to {most}")
    return PRIORS[name](**options)


def open_prior(folder: str | Path) -> Prior:
    """The prior that `save_pretrained` wrote into this folder, whichever class it is of, in evaluation mode.

    Raises UserError where the folder holds none.
    """
    path = Path(folder)
    require_saved(path)
    name = read_config(path).get("_class_name")
    kinds = {kind.__name__: kind for kind in PRIORS.values()}
    if not isinstance(name, str) or name not in kinds:
        raise UserError(f"{path / CONFIG}: _class_name {name}; {did_you_mean(str(name), kinds)}")
    return load_saved(kinds[name], path)
