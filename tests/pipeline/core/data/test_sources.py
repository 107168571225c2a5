import inspect
from pathlib import Path

import pytest
import yaml

from pipeline.core.data.sources import DATA, load_data
from pipeline.core.errors import UserError

CONFIGS = Path(__file__).parents[4] / "configs" / "data"


@pytest.mark.parametrize("options, message", [
    ({"name": "blue_marbel"}, "did you mean blue_marble"),
    ({"name": "xyz"}, "choose one of blue_marble, folder, hub, shapes"),
    ({"name": "shapes", "image_sise": 32}, "data.image_sise: no such option of shapes; did you mean image_size"),
    ({"name": "folder"}, "data.path: missing"),
    ({"name": "folder", "path": None}, "data.path: missing"),
    ({"name": "blue_marble", "image_size": 48}, "48 pixels; blue_marble has 32 or 64"),
])
def test_errors(options, message):
    with pytest.raises(UserError, match=message):
        load_data(**options)


def test_shapes_by_name(shape_data):
    assert load_data("shapes", image_size=16, train_per_class=5, validation_per_class=3).fingerprint == shape_data.fingerprint


def test_shipped_files_name_a_source_and_its_options():
    named = set()
    for file in CONFIGS.glob("*.yaml"):
        options = yaml.safe_load(file.read_text())
        named.add(name := options.pop("name"))
        parameters = inspect.signature(DATA[name]).parameters
        assert options.keys() <= parameters.keys(), file
        assert all(option in options for option, p in parameters.items() if p.default is inspect.Parameter.empty), file
    assert named == DATA.keys()
