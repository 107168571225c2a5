"""Costs: operations against a count by hand, and what a run's folder says of its training."""

import json

import pytest
import torch
from torch import nn

from eval.cost import flops_per_image, training_cost, training_course
from pipeline.api import Tokenizer


@pytest.fixture(scope="module")
def make():
    backbone = {"patch": 4, "channels": [16], "layers": 1, "attention": False}

    def tokenizer(**quantizer):
        return Tokenizer([16, 16], backbone, quantizer).eval()

    return tokenizer


def test_operations_of_convolutions_and_products_are_those_by_hand(make):
    tokenizer = make(name="vq", dim=4, codebook_size=16)
    seen = []

    def count(module, inputs, output):
        if isinstance(module, nn.Conv2d):
            seen.append(2 * output.numel() * module.weight[0].numel())
        elif isinstance(module, nn.Linear):
            seen.append(2 * output.numel() * module.in_features)

    hooks = [module.register_forward_hook(count) for module in tokenizer.modules()]
    with torch.no_grad():
        tokenizer.decode(tokenizer.encode(torch.zeros(1, 3, 16, 16)))
    for hook in hooks:
        hook.remove()
    distances = 2 * 16 * 16 * 4  # 16 vectors of 4 channels times 16 codes
    assert sum(seen) <= flops_per_image(tokenizer) <= sum(seen) + 2 * distances


def test_the_cost_of_a_training_is_what_its_launcher_recorded(tmp_path):
    assert training_cost(tmp_path) == {"train_seconds": None, "ms_per_step": None, "peak_mb": None}
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "state.json").write_text(json.dumps({"state": "done", "seconds": 50.0}))
    (tmp_path / "config.yaml").write_text("images: 3200\nbatch_size: 16\n")
    assert training_cost(tmp_path) == {"train_seconds": 50.0, "ms_per_step": 250.0, "peak_mb": None}


LGQ = {"name": "lgq", "dim": 4, "codebook_size": 8, "temperature_end": 0.25}
PAPER = {"name": "lgq_paper", "dim": 4, "codebook_size": 8, "temperature_end": 0.2}


@pytest.mark.parametrize(
    ("quantizer", "temperatures"),
    [
        (LGQ | {"peak_weight": 0.01}, [0.5, 0.25]),  # geometric
        (PAPER | {"peak_weight": 0.01}, [0.6, 0.2]),  # linear
        ({"name": "residual", "depth": 2, "base": LGQ}, [0.5, 0.25]),
        ({"name": "vq_ema", "dim": 4, "codebook_size": 8}, None),
    ],
    ids=["lgq", "lgq_paper", "residual", "vq_ema"],
)
def test_the_course_of_a_training(make, tmp_path, quantizer, temperatures):
    tokenizer = make(**quantizer)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    lines = [json.dumps({"images": images, "pixel": 0.1, "quantizer/peak": 0.002}) for images in (50, 100)]
    (tmp_path / "stats.jsonl").write_text("\n".join(lines) + "\n")
    found = training_course(tmp_path, tokenizer)
    assert [record["images"] for record in found] == [50, 100]
    if temperatures is None:
        assert "temperature" not in found[0] and "purity" not in found[0]
    else:
        assert [record["temperature"] for record in found] == pytest.approx(temperatures, rel=1e-4)
    if "peak_weight" in tokenizer.config["quantizer_config"]:
        assert found[0]["purity"] == pytest.approx(0.8)
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())
    assert training_course(tmp_path / "nowhere", tokenizer) == []
