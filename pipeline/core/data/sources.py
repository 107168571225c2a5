"""All sources of images by name."""

import inspect
from collections.abc import Callable

from pipeline.core.config import did_you_mean, require_kinds
from pipeline.core.data.blue_marble import blue_marble
from pipeline.core.data.folder import folder
from pipeline.core.data.hub import hub
from pipeline.core.data.images import ImageData
from pipeline.core.data.shapes import shapes
from pipeline.core.errors import UserError

DATA: dict[str, Callable[..., ImageData]] = {
    "blue_marble": blue_marble,
    "folder": folder,
    "hub": hub,
    "shapes": shapes,
}


def load_data(name: str, **options) -> ImageData:
    """Load a data set by its name in `DATA`, with that source's options.

    Raises UserError for an unknown name or option ("did you mean"), a missing option, and whatever the source raises.
    """
    if name not in DATA:
        raise UserError(f"data.name: no such source {name!r}; {did_you_mean(name, DATA)}")
    parameters = inspect.signature(DATA[name]).parameters
    for option in options:
        if option not in parameters:
            raise UserError(f"data.{option}: no such option of {name}; {did_you_mean(option, parameters)}")
    for option, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and options.get(option) in (None, ""):
            raise UserError(f"data.{option}: missing; {name} needs it, e.g. data.{option}=...")
    try:
        require_kinds("data", DATA[name], options)
    except ValueError as error:
        raise UserError(str(error)) from None
    return DATA[name](**options)
