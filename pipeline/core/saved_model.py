"""Opening the folders that `save_pretrained` writes: nothing is believed before it is compared.

diffusers leaves weights that it does not find as they are drawn at random, falls back to pickle, and builds whatever size a
config.json asks for. Here names, shapes and kinds of numbers are compared with the file's before memory is taken.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.core.errors import UserError
from pipeline.core.files import read_json

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
Model = TypeVar("Model", bound=nn.Module)


def load_saved(kind: type[Model], folder: Path) -> Model:
    """The model of a class that was saved in a folder, in evaluation mode, in the precision of its class.

    Raises UserError where a file is missing or damaged, the weights are not those of the configuration, or not finite.
    """
    require_saved(folder)
    config, file = read_config(folder), folder / WEIGHTS
    name = config.get("_class_name")
    if name != kind.__name__:
        raise UserError(f"{folder / CONFIG}: _class_name {name}, not {kind.__name__}; give the folder of another model")
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        with torch.device("meta"):  # shapes without memory
            expected = kind(**arguments).state_dict()
    except Exception as error:  # a damaged configuration may break a constructor anywhere
        raise UserError(
            f"{folder / CONFIG}: describes no {kind.__name__} ({first_line(error)}); save or copy it again"
        ) from None
    try:
        with safe_open(file, "pt") as held:
            found = {key: held.get_slice(key) for key in held.keys()}  # noqa: SIM118  (no mapping)
            shapes = {key: (tuple(part.get_shape()), part.get_dtype().startswith(("F", "BF"))) for key, part in found.items()}
        problem = _difference(shapes, expected)
        weights = {} if problem else load_file(file)
    except Exception as error:  # safetensors has several kinds for damaged files
        raise UserError(f"{file}: damaged ({first_line(error)}); export or copy the model again") from None
    problem = problem or next((f"{key} is not finite" for key, tensor in weights.items() if not tensor.isfinite().all()), None)
    if problem:
        raise UserError(f"{file}: {problem}; export or copy the model again")
    with init_empty_weights():
        model = kind(**arguments)
    model.load_state_dict({key: tensor.to(expected[key].dtype) for key, tensor in weights.items()}, assign=True)
    return model.eval()


def require_saved(folder: Path) -> None:
    """UserError where the folder lacks one of a saved model's files, or one of them is empty."""
    for name in (CONFIG, WEIGHTS):
        file = folder / name
        if not file.is_file():
            raise UserError(f"{file}: missing; export or copy the model again")
        if file.stat().st_size == 0:
            raise UserError(f"{file}: empty (0 bytes); export or copy the model again")


def read_config(folder: Path) -> dict[str, Any]:
    """A saved model's configuration."""
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG}: holds {type(config).__name__}, no settings; export or copy the model again")
    return config


def first_line(error: Exception) -> str:
    """What an error says first, for a line of ours."""
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


def _difference(found: dict[str, tuple[tuple[int, ...], bool]], expected: dict[str, Tensor]) -> str | None:
    """The first thing in which a file's tensors, a shape and whether they are floats, are not those of a model."""
    for key, tensor in expected.items():
        if key not in found:
            return f"has no {key}, which {CONFIG} asks for"
        shape, floating = found[key]
        if shape != tuple(tensor.shape):
            return f"{key} has the shape {shape}, {CONFIG} asks for {tuple(tensor.shape)}"
        if floating != tensor.is_floating_point():
            return f"{key} holds other numbers than {tensor.dtype}"
    more = sorted(found.keys() - expected.keys())
    return f"has {more[0]}, which {CONFIG} knows nothing of" if more else None
