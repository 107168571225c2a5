"""Trainings with a pretrained encoder that thaws, alignment and a second decode: resumed or split, they are the same."""

from __future__ import annotations

import copy
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.api import load_tokenizer
from pipeline.core.config import CONFIGS, load_config
from pipeline.core.efficientnet import Lite0Trunk
from stage1_tokenizer.config import Stage1Config
from stage1_tokenizer.objective import TokenizerObjective
from stage1_tokenizer.training import build_guide, build_tokenizer, dry_run, encoder_parameters, parameter_groups

TRAIN = "stage1_tokenizer.train"
WEIGHTS = "tokenizer/diffusion_pytorch_model.safetensors"
# a frozen half of three reports, then a thawed one; vaevq renders samples too
VISION = [
    *("images=96", "report_every=16", "snapshot_every=16", "backbone.pretrained=true", "vision=efficientnet_lite0"),
    *("vision.stride=8", "loss.vf_weight=0.1", "loss.thaw=0.5", "loss.gan_start=0.7"),
    *("quantizer=vaevq", "quantizer.codebook_size=16", "quantizer.dim=4"),
]


@pytest.fixture(scope="module")
def straight(commands, settings, tmp_path_factory) -> Path:
    """The run in one process without a stop."""
    run = tmp_path_factory.mktemp("straight") / "run"
    commands.succeed(TRAIN, f"run={run}", *settings.stage1, *VISION)
    return run


def stats(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def snapshots(run: Path) -> int:
    return max((int(path.name) for path in run.glob("snapshots/*") if path.name.isdigit()), default=0)


def test_the_encoder_is_the_published_one_until_it_thaws(straight):
    assert ["distillation" in record for record in stats(straight)] == [False, False, False, True, True, True]
    assert stats(straight)[-1]["distillation"] > 0
    assert all({"alignment", "vf_weight", "further/pixel"} <= record.keys() for record in stats(straight))
    published = Lite0Trunk(8).state_dict()
    end = load_file(straight / WEIGHTS)
    assert any(not end[f"encoder.trunk.{name}"].equal(value) for name, value in published.items())
    assert not any("to_features" in name for name in end), "the alignment's projection was exported"


def test_a_run_resumed_frozen_and_thawed_equals_an_uninterrupted_one_bit_for_bit(straight, commands, settings, tmp_path):
    run = tmp_path / "run"
    command = (TRAIN, f"run={run}", *settings.stage1, *VISION)
    for moment in (16, 64):
        held = commands.start(*command, environment=settings.hold(moment))
        stopped = commands.stop_when(held, lambda moment=moment: snapshots(run) >= moment, signal.SIGTERM)
        assert stopped.code == 143
        assert moment <= snapshots(run) < (48 if moment == 16 else 96), "the signal came too late to show anything"
    commands.succeed(*command)
    assert (run / WEIGHTS).read_bytes() == (straight / WEIGHTS).read_bytes()
    assert (run / "stats.jsonl").read_bytes() == (straight / "stats.jsonl").read_bytes()


@pytest.mark.parametrize("how", ["2 processes", "micro-batches"])
def test_it_learns_the_same_whatever_splits_its_batch(straight, commands, settings, tmp_path, how):
    arguments = [f"run={tmp_path / 'run'}", *settings.stage1, *VISION]
    if how == "micro-batches":
        commands.succeed(TRAIN, *arguments, "micro_batch=3")
    else:
        commands.together(2, TRAIN, *arguments)
    ours, theirs = stats(tmp_path / "run"), stats(straight)
    assert [record.keys() for record in ours] == [record.keys() for record in theirs]
    for name in theirs[-1]:
        found, wanted = ({name: torch.tensor([record.get(name, 0.0) for record in records])} for records in (ours, theirs))
        torch.testing.assert_close(found, wanted, rtol=5e-3, atol=5e-5)


def test_the_finished_tokenizer_loads_without_the_networks_weights(straight):
    tokenizer = load_tokenizer(straight)
    tokens = tokenizer.encode(torch.rand(2, 3, 16, 16))
    assert tokens.shape == (2, 16, 1)
    assert tokenizer.decode(tokens).isfinite().all()


def test_the_optimizer_leaves_a_frozen_encoder_alone_and_steps_a_thawed_one(settings):
    config = load_config(Stage1Config, "configs/stage1/demo.yaml", [*settings.stage1, *VISION, "optim.weight_decay=0.5"])
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config)
    objective = TokenizerObjective(tokenizer, None, 0.0, build_guide(config, tokenizer, torch.device("cpu")), 0.5)
    groups = parameter_groups(objective, config)
    listed = [parameter for group in groups for parameter in group["params"]]
    assert sorted(map(id, listed)) == sorted(map(id, objective.parameters())), "each parameter in one group"
    assert [group["factor"] for group in groups] == [1.0, 1.0, 0.1]
    optimizer = torch.optim.AdamW(groups, 0.01, weight_decay=0.5, fused=True)
    encoder = encoder_parameters(objective, config)
    for progress in (0.0, 0.4, 0.5):
        objective.anneal(progress)
        before = copy.deepcopy([parameter.detach() for parameter in encoder])
        objective(torch.rand(4, 3, 16, 16) * 2 - 1, None, None, 0.0).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = [not now.equal(then) for now, then in zip(encoder, before, strict=True)]
        assert all(moved) if progress == 0.5 else not any(moved)
        assert all((parameter in optimizer.state) == (progress == 0.5) for parameter in encoder)


@pytest.mark.parametrize("name", ["vqrae_demo", "vqrae256"])
def test_the_shipped_configurations_are_vqrae(name):
    config = load_config(Stage1Config, f"configs/stage1/{name}.yaml")
    with torch.device("meta"):
        tokenizer = build_tokenizer(config)
    assert config.backbone.pretrained and config.quantizer["name"] == "simvq"
    assert tokenizer.quantizer.dim >= tokenizer.encoder.channels, "the code is narrower than the features"
    assert 0 < config.loss.thaw < 1 and config.loss.distillation_weight > 0
    assert "encoder: " in dry_run(config)


def test_the_large_configuration_opens_with_its_command_its_cost_and_its_number():
    lines = (CONFIGS / "stage1/vqrae256.yaml").read_text().splitlines()
    comment = "\n".join(line for line in lines if line.startswith("#"))
    assert "--config configs/stage1/vqrae256.yaml" in comment
    assert "Meant for" in comment and "NOT RUN HERE" in comment and "arXiv" in comment
    assert max(map(len, lines)) <= 132


def test_two_margins_are_needed():
    with pytest.raises(Exception, match=r"config.loss.vf_margins: \[0.5\]; give two"):
        load_config(Stage1Config, "configs/stage1/demo.yaml", ["loss.vf_margins=[0.5]"])


def test_weights_that_cannot_be_had_are_one_clear_line(commands, settings, tmp_path):
    arguments = [*settings.stage1, "backbone.pretrained=true", "vision=dinov2", "vision.architecture.num_hidden_layers=1"]
    failed = commands.run(TRAIN, f"run={tmp_path / 'run'}", *arguments)
    assert failed.code == 2
    (line,) = failed.error_lines
    assert "vision.weights: facebook/dinov2-base" in line and "vision=efficientnet_lite0" in line
