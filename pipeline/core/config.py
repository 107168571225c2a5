"""Configuration: YAML files that include others, `key=value` on top, frozen dataclasses underneath.

    config = load_config(Stage1Config, "configs/stage1/demo.yaml", ["quantizer=fsq", "optim.lr=2e-4"])

* `include: other.yaml` (or a list) in a file: the others come first, this file wins. Paths are relative to the file.
* A *component* is a field of type `dict[str, Any]`: it has a `name` and options. `quantizer: lgq` is short for
  `quantizer: {name: lgq}`, and `configs/quantizer/lgq.yaml` holds the defaults of its options. A new name drops the old
  options.
* A part that has a `name` may be given by it alone: `[lgq, {name: fsq, label: big}]`. A `Mapping[str, kind]` takes any names.
* An unknown key, a wrong type or a missing file is a `UserError` that says where, what and what to do.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml
from yaml.composer import ComposerError

from pipeline.core.errors import UserError
from pipeline.core.files import read_file

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
Schema = TypeVar("Schema")


def load_config(schema: type[Schema], path: str | Path | None = None, overrides: Sequence[str] = ()) -> Schema:
    """The configuration of `schema` from a YAML file, with `key=value` overrides on top.

    A path that is not found from here is tried from the project's folder, so that `configs/…` works from anywhere. Raises
    UserError for a missing file, bad YAML, an unknown key (with the nearest known one) or a value of the wrong type.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = read_yaml(Path(path) if os.path.exists(path) else CONFIGS.parent / path)
    for override in overrides:
        values = _merge(values, _parse_override(override), schema)
    return _build(schema, values, place="config")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, its `include`s merged below it."""
    return _read(path, seen=())


def known_names(kind: str) -> list[str]:
    """Names of the components of a kind: the files in `configs/<kind>/`."""
    return sorted(file.stem for file in (CONFIGS / kind).glob("*.yaml"))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The remedy for a misspelt name: the nearest known one, or the list of them."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {nearest[0]}?" if nearest else f"choose one of {', '.join(known) or '(nothing)'}"


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain dictionaries, lists and scalars: what YAML and JSON can hold."""
    return _plain(dataclasses.asdict(config))


def require_between(config: Any, **limits: tuple[float, float]) -> None:
    """ValueError that names the first field outside its limits, both included; for `__post_init__`. None passes.

    A field's numbers are looked at one by one where it holds several.
    """
    for name, (least, most) in limits.items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not least <= number <= most:
                raise ValueError(f"{name}: {number}; give {f'{least} to {most}' if most < math.inf else f'{least} or more'}")


def require_limits(place: str, **checked: tuple[float, float, float]) -> None:
    """UserError that names the first option (value, least, most) outside its limits, both included."""
    for name, (value, least, most) in checked.items():
        if not least <= value <= most:
            raise UserError(f"{place}.{name}: {value}; give {least} to {most}")


def require_kinds(place: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """ValueError that names the first option whose value is not of the kind that the function's signature declares.

    Numbers, texts, truth values, lists and None are told apart; what is declared as anything else is not looked at.
    """
    hints = typing.get_type_hints(function)
    for option, value in options.items():
        hint = hints.get(option, Any)
        kinds = tuple(typing.get_origin(kind) or kind for kind in kinds_of(hint))
        if not all(kind in (int, float, str, bool, list, tuple, Sequence, types.NoneType) for kind in kinds):
            continue
        allowed = {*kinds, *((int,) if float in kinds else ()), *((list, tuple) if Sequence in kinds else ())}
        if type(value) not in allowed:
            wanted = " or ".join("null" if kind is types.NoneType else kind.__name__ for kind in kinds)
            raise ValueError(f"{place}.{option}: {_short(value)} is no {wanted}; give one")
        if type(value) is int and abs(value) >= 2**31:
            raise ValueError(f"{place}.{option}: {_short(value)} is too large for anything; give a smaller number")


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """The types that a value of this annotation may have: those of a union, or the one."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


class _Loader(yaml.SafeLoader):
    """With the numbers of YAML 1.2 (PyYAML takes 1e-5 and 1.5e3 for texts), and without aliases: ten lines of them can
    stand for a billion values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            problem = f"an alias (*{event.anchor}), which is not supported here; write the value out"
            raise ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def _read_yaml(text: str) -> Any:
    """The value of a YAML text: mappings with texts for keys, lists, texts, numbers, true, false, null. _NotYAML else."""
    try:
        loader = _Loader(text)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
        _require_plain(value)
        return value
    except RecursionError:
        raise _NotYAML("nested too deeply") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        raise _NotYAML(problem or "mend the text", f":{mark.line + 1}" if mark else "") from None
    except ValueError as error:  # a date or a number that cannot be
        raise _NotYAML(str(error)) from None


class _NotYAML(Exception):
    """What is wrong with a text, and the line as messages end a file's name with it."""

    def __init__(self, problem: str, line: str = "") -> None:
        super().__init__(problem)
        self.line = line


def _require_plain(value: Any) -> None:
    """ValueError for what JSON cannot hold: sets, bytes, dates, keys that are no texts."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"the key {_short(key)} is no text; quote it")
            _require_plain(value[key])
    elif isinstance(value, list):
        for item in value:
            _require_plain(item)
    elif value is not None and not isinstance(value, (str, int, float)):
        raise ValueError(f"{_short(value)} is a {type(value).__name__}; write texts, numbers, lists and mappings only")


def _short(value: Any) -> str:
    """A value for a message."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def to_yaml(config: Any) -> str:
    """A configuration as the YAML text that `load_config` reads back."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if "\0" in str(path):
        raise UserError(f"{path}: no name of a file; remove the zero byte")
    path = path.resolve()
    if path in seen:
        raise UserError(f"{path}: includes itself; remove the circle")
    try:
        values = _read_yaml(read_file(path).decode()) or {}
    except (FileNotFoundError, IsADirectoryError):
        nearest = did_you_mean(path.name, (file.name for file in path.parent.glob("*.yaml")))
        raise UserError(f"{path}: no such configuration file; {nearest}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give another configuration file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except _NotYAML as error:
        raise UserError(f"{path}{error.line}: not valid YAML; {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds {type(values).__name__}; a configuration file is a mapping of names to values")
    includes = values.pop("include", [])
    merged: dict[str, Any] = {}
    includes = [includes] if isinstance(includes, str) else includes
    if not isinstance(includes, list) or not all(isinstance(include, str) for include in includes):
        raise UserError(f"{path}: include: {_short(includes)}; give a file or a list of files")
    for include in includes:
        merged = _merge(merged, _read(path.parent / include, (*seen, path)))
    return _merge(merged, values)


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"{text[:200]}: not an override; write key=value, for example optim.lr=2e-4")
    try:
        parsed = _read_yaml(value) if value else ""
    except _NotYAML as error:
        raise UserError(f"{text[:200]}: the value is not valid YAML ({error}); quote it") from None
    for part in reversed(key.split(".")):
        parsed = {part: parsed}
    return parsed  # pyright: ignore[reportReturnType]  (key has at least one part)


def _merge(base: dict[str, Any], top: dict[str, Any], schema: Any = None) -> dict[str, Any]:
    """`top` over `base`, mapping by mapping; a component that changes its name starts afresh."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        if isinstance(value, str) and isinstance(old, dict):
            value = {"name": value}
        if isinstance(old, str) and isinstance(value, dict):
            old = {"name": old}
        if isinstance(value, dict) and isinstance(old, dict) and value.get("name", old.get("name")) == old.get("name"):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _build(schema: type[Schema], values: Mapping[str, Any], place: str) -> Schema:
    hints = typing.get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema)}  # pyright: ignore[reportArgumentType]
    for key in values:
        if key not in fields:
            raise UserError(f"{place}.{key[:100]}: no such setting; {did_you_mean(key[:100], fields)}")
    built = {}
    for name, field in fields.items():
        if name in values:
            built[name] = _convert(hints[name], values[name], f"{place}.{name}")
        elif field.default is not dataclasses.MISSING:
            built[name] = _convert(hints[name], field.default, f"{place}.{name}")
        elif dataclasses.is_dataclass(hints[name]):
            built[name] = _build(hints[name], {}, f"{place}.{name}")  # pyright: ignore[reportArgumentType]
        elif field.default_factory is not dataclasses.MISSING:
            built[name] = _convert(hints[name], field.default_factory(), f"{place}.{name}")
        else:
            raise UserError(f"{place}.{name}: missing; set it in the file or as {name}=value")
    try:
        return schema(**built)
    except ValueError as error:
        raise UserError(f"{place}.{error}") from None


def _convert(kind: Any, value: Any, place: str) -> Any:
    """`value` as `kind`, or a UserError that names the place."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if dataclasses.is_dataclass(value):
            return value
        if isinstance(value, str) and any(field.name == "name" for field in dataclasses.fields(kind)):
            value = {"name": value}
        if not isinstance(value, Mapping):
            example = f"{place.removeprefix('config.')}.name=value"
            raise UserError(f"{place}: {_short(value)}; expected settings, for example {example}")
        return _build(kind, value, place)  # pyright: ignore[reportArgumentType]
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(kind for kind in arguments if kind is not type(None)), value, place)
    if origin is Literal:
        if value is False and "no" in arguments:
            return "no"  # YAML 1.1 reads an unquoted no as false
        if not isinstance(value, str) or value not in arguments:
            raise UserError(f"{place}: {_short(value)}; {did_you_mean(str(value)[:100], map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{place}: {_short(value)}; expected a list, for example [1, 2]")
        return tuple(_convert(arguments[0], item, f"{place}[{index}]") for index, item in enumerate(value))
    if origin is dict or kind is dict:
        return _component(value, place)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise UserError(f"{place}: {_short(value)}; expected names with their values, for example {{name: value}}")
        return {str(key): _convert(arguments[1], item, f"{place}.{key}") for key, item in value.items()}
    if kind is Any:
        return _plain(value)
    return _scalar(kind, value, place)


def _component(value: Any, place: str) -> dict[str, Any]:
    kind = place.rpartition(".")[2]
    given = {"name": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise UserError(f"{place}: {_short(value)}; expected a name, {did_you_mean(str(value)[:100], known_names(kind))}")
    name = given["name"]
    if name not in known_names(kind):
        raise UserError(f"{place}: {name[:100]}: no such {kind}; {did_you_mean(name[:100], known_names(kind))}")
    defaults = read_yaml(CONFIGS / kind / f"{name}.yaml")
    # the file may name another: configs/data/imagenet.yaml is the source "folder" with options
    return _plain({**_merge(defaults, dict(given)), "name": defaults.get("name", name)})


def _scalar(kind: Any, value: Any, place: str) -> Any:
    if kind is float and not isinstance(value, bool):
        with suppress(TypeError, ValueError, OverflowError):
            number = float(value)  # YAML 1.1 reads 1e-4 as text
            if not math.isnan(number):
                return number
    elif kind is int and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return value
    elif kind is int and isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return int(value)
    elif kind is bool and isinstance(value, bool):
        return value
    elif kind is str and isinstance(value, (str, int, float)):
        return str(value)
    raise UserError(f"{place}: {_short(value)} is not {'an' if kind is int else 'a'} {kind.__name__}; give one")
