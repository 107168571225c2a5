from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml

from pipeline.core import config as module
from pipeline.core.config import CONFIGS, load_config, to_dict, to_yaml
from pipeline.core.data.sources import DATA
from pipeline.core.errors import UserError


@dataclass(frozen=True)
class Optim:
    lr: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.99)
    ema: float | None = None


@dataclass(frozen=True)
class Settings:
    run: str = "runs/x"
    images: int = 100
    flip: bool = True
    precision: Literal["no", "bf16"] = "no"
    optim: Optim = field(default_factory=Optim)
    fruit: dict[str, Any] = field(default_factory=lambda: {"name": "apple"})

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images: {self.images}; at least 1")


@pytest.fixture(autouse=True)
def fruits(tmp_path, monkeypatch):
    """A folder of configurations with two components of the kind `fruit`."""
    (tmp_path / "configs/fruit").mkdir(parents=True)
    (tmp_path / "configs/fruit/apple.yaml").write_text("name: apple\nsize: 3\nskin: red\n")
    (tmp_path / "configs/fruit/pear.yaml").write_text("name: pear\nsize: 4\n")
    (tmp_path / "configs/fruit/small_pear.yaml").write_text("name: pear\nsize: 1\n")
    monkeypatch.setattr(module, "CONFIGS", tmp_path / "configs")
    return tmp_path


def write(folder, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_defaults_without_a_file():
    assert load_config(Settings) == Settings(fruit={"name": "apple", "size": 3, "skin": "red"})


def test_overrides_go_over_the_file_and_the_file_over_its_includes(fruits):
    write(fruits, base="images: 1\nrun: base\noptim: {lr: 1, ema: 0.5}", more="run: more")
    write(fruits, top="include: [base.yaml, more.yaml]\nflip: no")
    config = load_config(Settings, fruits / "top.yaml", ["optim.lr=2e-4", "images=7"])
    assert (config.images, config.run, config.flip, config.optim) == (7, "more", False, Optim(2e-4, (0.9, 0.99), 0.5))


def test_includes_are_relative_to_their_file(fruits):
    (fruits / "deep").mkdir()
    write(fruits, base="images: 5")
    write(fruits / "deep", top="include: ../base.yaml")
    assert load_config(Settings, fruits / "deep/top.yaml").images == 5


@pytest.mark.parametrize(
    "setting, expected",
    [
        ("optim.betas=[0, 1]", {"optim": Optim(betas=(0.0, 1.0))}),
        ("optim.ema=null", {"optim": Optim(ema=None)}),
        ("images=1_000", {"images": 1000}),
        ("images=1.0e+3", {"images": 1000}),
        ("run=2024", {"run": "2024"}),
        ("run=", {"run": ""}),
        ("run=a=b", {"run": "a=b"}),
        ("precision=no", {"precision": "no"}),  # YAML reads it as false
        ("precision=bf16", {"precision": "bf16"}),
    ],
)
def test_values_become_what_the_field_says(setting, expected):
    config = load_config(Settings, None, [setting])
    assert {name: getattr(config, name) for name in expected} == expected


def test_what_is_written_is_read_again(fruits):
    config = load_config(Settings, None, ["fruit=small_pear", "fruit.size=9", "precision=no", "optim.betas=[1]"])
    write(fruits, again=to_yaml(config))
    assert load_config(Settings, fruits / "again.yaml") == config
    assert yaml.safe_load(to_yaml(config)) == to_dict(config)


@pytest.mark.parametrize(
    "settings, fruit",
    [
        (["fruit.size=9"], {"name": "apple", "size": 9, "skin": "red"}),
        (["fruit=pear"], {"name": "pear", "size": 4}),  # the apple's options go with its name
        (["fruit.name=pear"], {"name": "pear", "size": 4}),
        (["fruit=apple"], {"name": "apple", "size": 5, "skin": "red"}),
        (["fruit=pear", "fruit.size=9"], {"name": "pear", "size": 9}),
        (["fruit=small_pear"], {"name": "pear", "size": 1}),  # a file may name another
        (["fruit={name: pear, size: 2}"], {"name": "pear", "size": 2}),
    ],
)
def test_components(fruits, settings, fruit):
    write(fruits, top="fruit: {name: apple, size: 5}" if settings != ["fruit.size=9"] else "fruit: apple")
    assert load_config(Settings, fruits / "top.yaml", settings).fruit == fruit


@pytest.mark.parametrize(
    "setting, message",
    [
        ("imags=1", "config.imags: no such setting; did you mean images?"),
        ("optim.rl=1", "config.optim.rl: no such setting; did you mean lr?"),
        ("optim=adam", "config.optim: 'adam'; expected settings"),
        ("optim=3", "config.optim: 3; expected settings, for example optim.name=value"),
        ("images=many", "config.images: 'many' is not an int"),
        ("images=1.5", "config.images: 1.5 is not an int"),
        ("images=.inf", "config.images: inf is not an int"),
        ("images=.nan", "config.images: nan is not an int"),
        ("images=true", "config.images: True is not an int"),
        ("images=0", "config.images: 0; at least 1"),
        ("flip=1", "config.flip: 1 is not a bool"),
        ("optim.lr=[1]", "config.optim.lr: \\[1\\] is not a float"),
        ("optim.betas=1", "config.optim.betas: 1; expected a list"),
        ("optim.betas=[1, x]", "config.optim.betas\\[1\\]: 'x' is not a float"),
        ("precision=fp15", "config.precision: 'fp15'; did you mean bf16?"),
        ("fruit=appel", "config.fruit: appel: no such fruit; did you mean apple?"),
        ("fruit=[1]", "config.fruit: \\[1\\]; expected a name"),
        ("images", "images: not an override; write key=value"),
        ("optim..lr=1", "not an override"),
        ("run=[", "run=\\[: the value is not valid YAML"),
    ],
)
def test_mistakes_are_named(setting, message):
    with pytest.raises(UserError, match=message):
        load_config(Settings, None, [setting])


@pytest.mark.parametrize(
    "text, message",
    [
        ("include: top.yaml", "top.yaml: includes itself"),
        ("include: other.yaml", "top.yaml: includes itself"),
        ("include: nothing.yaml", "nothing.yaml: no such configuration file"),
        ("include: 3", "include: 3; give a file"),
        ("images: [1\nrun: 2", "top.yaml:2: not valid YAML"),
        ("- 1", "top.yaml: holds list; a configuration file is a mapping"),
        ("1: 2", "top.yaml: not valid YAML; the key 1 is no text; quote it"),
    ],
)
def test_mistakes_in_files_are_named(fruits, text, message):
    write(fruits, top=text, other="include: top.yaml")
    with pytest.raises(UserError, match=message):
        load_config(Settings, fruits / "top.yaml")


def test_a_missing_field_is_named():
    @dataclass(frozen=True)
    class Required:
        run: str

    with pytest.raises(UserError, match=r"config.run: missing; set it in the file or as run=value"):
        load_config(Required)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("data/*.yaml")), ids=lambda path: path.stem)
def test_shipped_data_configurations_name_a_source(path):
    assert module.read_yaml(path)["name"] in DATA


@pytest.mark.parametrize("text, value", [("1e-5", 1e-5), ("2E+3", 2e3), ("-1e2", -100.0), ("1.5e3", 1500.0), ("e5", "e5")])
def test_numbers_without_a_point_are_numbers_in_components_too(fruits, text, value):
    write(fruits, plain="fruit: apple\n")
    assert load_config(Settings, fruits / "plain.yaml", [f"fruit.size={text}"]).fruit["size"] == value
    write(fruits, given=f"fruit: {{name: apple, size: {text}}}\n")
    assert load_config(Settings, fruits / "given.yaml").fruit["size"] == value
