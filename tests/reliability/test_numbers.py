"""A loss or gradient that is not finite: the step is left out, counted, and a run of them ends the training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from pipeline.core.errors import UserError
from pipeline.core.run_folder import RunFolder
from pipeline.core.snapshot import load_newest_snapshot, load_snapshot
from pipeline.core.step_guard import Averages, StepGuard, marked, persistent_buffers, step_if
from stage1_tokenizer.backbone import Backbone
from stage1_tokenizer.objective import TokenizerObjective
from stage1_tokenizer.quantizers import QUANTIZERS
from stage1_tokenizer.tokenizer import Tokenizer

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs" / "quantizer"
STAGE1, STAGE2 = "stage1_tokenizer.train", "stage2_prior.train"
# a report and a snapshot after every one of eight steps; the adversarial loss sets in after two of them
EVERY_STEP = ["images=64", "report_every=8", "snapshot_every=8", "keep_snapshots=99", "optim.warmup=8"]
MOVES = ("images_seen", "guard", "means", "tokens", "optimization_step")  # with the clock, in a step that is left out too
SCHEDULES = ("t", "temperature", "boost")  # buffers that are functions of the images seen
POWER = ("_u", "_v")  # the discriminator's power iteration, a function of its weights


def fault(kind: str, steps: str, **more: str) -> dict[str, str]:
    return {"RUN_BEFORE": str(HERE / "numeric_faults.py"), "FAULT": kind, "FAULT_STEPS": steps, **more}


def stats(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def tensors(state: Any, place: str = "") -> dict[str, Any]:
    """The leaves of a snapshot that a step changes, by their places."""
    if isinstance(state, (dict, list)):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        parts = [tensors(value, f"{place}/{key}") for key, value in items if key not in MOVES]
        return {name: value for part in parts for name, value in part.items()}
    return {} if place.rpartition("/")[2].rpartition(".")[2] in (*SCHEDULES, *POWER, "lr") else {place: state}


def changed(run: Path, step: int) -> set[str]:
    """The parts of the state that a step changed, counted from 0: the snapshot after it beside the one before."""
    before, after = (tensors(load_snapshot(run / "snapshots" / f"{8 * images:012d}")) for images in (step, step + 1))
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not equal(value, after[name])}


def equal(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("lgq", "ar")]


@pytest.fixture(scope="module", params=["vq_ema", "maskgit", *SLOW])
def training(request, chain, settings):
    """A training's command, without its run."""
    if request.param in QUANTIZERS:
        return STAGE1, *settings.stage1, "loss.gan_start=0.25", f"quantizer.name={request.param}", *EVERY_STEP
    return STAGE2, f"tokens={chain.tokens}", f"prior={request.param}", *settings.stage2, *EVERY_STEP, "validate_every=64"


@pytest.mark.parametrize("kind, value", [("loss", "inf"), ("gradient", "nan")])
def test_a_step_that_is_not_finite_changes_nothing_but_the_clock(commands, training, tmp_path, kind, value):
    run = tmp_path / "run"
    done = commands.succeed(*training, f"run={run}", environment=fault(kind, "4,6", FAULT_VALUE=value))
    assert [record.get("bad_steps", 0) for record in stats(run)] == [0, 0, 0, 0, 1, 0, 1, 0]
    assert all(math.isfinite(number) for record in stats(run) for number in record.values())
    assert done.err.count(f"{run}: 1 steps left out whose loss or gradient was not finite (") == 2 and f"{kind}" in done.err
    assert [changed(run, step) for step in (4, 6)] == [set(), set()]
    for step in (3, 5, 7):
        assert {name.split("/")[1] for name in changed(run, step)} >= {"ema", "optimizer"}


def test_processes_leave_out_a_step_together(commands, training, tmp_path):
    # the loss alone is spoilt, and of the second process alone: its gradients would be finite
    run = tmp_path / "run"
    commands.together(2, *training, f"run={run}", environment=fault("loss", "4", FAULT_RANK="1"))
    assert [record.get("bad_steps", 0) for record in stats(run)] == [0, 0, 0, 0, 1, 0, 0, 0]
    assert changed(run, 4) == set() and len(changed(run, 5)) > 10


@pytest.mark.parametrize("kind", [pytest.param("loss", marks=pytest.mark.slow), "gradient"])
@pytest.mark.parametrize("prior", ["maskgit", pytest.param("ar", marks=pytest.mark.slow)])
def test_shards_leave_out_a_step_together(chain, commands, settings, sharding, tmp_path, prior, kind):
    # of the second process alone; the first number of a gradient is in the first one's shard alone
    run = tmp_path / "run"
    command = (STAGE2, f"run={run}", f"tokens={chain.tokens}", f"prior={prior}", *settings.stage2, *EVERY_STEP)
    environment = sharding | fault(kind, "4", FAULT_RANK="1")
    commands.together(2, *command, "validate_every=64", environment=environment)
    assert [record.get("bad_steps", 0) for record in stats(run)] == [0, 0, 0, 0, 1, 0, 0, 0]
    assert changed(run, 4) == set() and len(changed(run, 3)) > 10 and len(changed(run, 5)) > 10


def test_a_discriminator_is_spared_too(commands, settings, tmp_path):
    run = tmp_path / "run"
    command = (STAGE1, f"run={run}", *settings.stage1, "loss.gan_start=0.25", *EVERY_STEP)
    commands.succeed(*command, environment=fault("discriminator", "4"))
    assert [record.get("bad_steps", 0) for record in stats(run)] == [0, 0, 0, 0, 1, 0, 0, 0]
    assert not any("discriminator" in name for name in changed(run, 4)) and any("objective" in name for name in changed(run, 4))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_of_them_ends_the_training(commands, training, tmp_path, processes):
    run = tmp_path / "run"
    arguments = (*training, f"run={run}", "optim.max_bad_steps=3")
    environment = fault("loss", "3,5,6,7", FAULT_RANK=str(processes - 1))
    if processes == 1:
        ended = [commands.run(*arguments, environment=environment)]
    else:
        ended = [commands.wait(pid) for pid in commands.start_group(2, *arguments, environment=environment)]
    for result in ended:
        last = result.error_lines[-1]
        assert result.code == 2 and last.count("error: ") == 1 and "Traceback" not in result.err, result.err
        assert f"{run}: 3 steps in a row with a loss or gradient that is not finite, the first after 40 images, lr " in last
        assert f"the last good snapshot is {run}/snapshots/" in last and "lower optim.lr" in last
    assert "not finite: loss" in ended[-1].error_lines[-1]
    state = load_newest_snapshot(run / "snapshots")
    assert state is not None and all(torch.as_tensor(value).isfinite().all() for value in weights(state))
    # run again without the fault, it goes on and ends
    commands.succeed(*arguments)
    assert (run / "stats.jsonl").read_text().count("\n") == 8


def weights(state: dict[str, Any]) -> list[torch.Tensor]:
    return [*(state.get("prior") or state["objective"]).values(), *state["ema"]["shadow_params"]]


@pytest.mark.parametrize("processes", [1, 2])
def test_weights_that_are_not_finite_reach_no_snapshot(commands, training, tmp_path, processes):
    run = tmp_path / "run"
    environment = fault("weight", "4", FAULT_RANK="0")
    arguments = (*training, f"run={run}")
    if processes == 1:
        ended = [commands.run(*arguments, environment=environment)]
    else:
        ended = [commands.wait(pid) for pid in commands.start_group(2, *arguments, environment=environment)]
    assert [result.code for result in ended] == [2] * processes
    for result in ended:
        last = result.error_lines[-1]
        assert "weights are not finite (" in last and f"the last good snapshot is {run}/snapshots/{32:012d}" in last
    state = load_newest_snapshot(run / "snapshots")
    assert state is not None and state["images_seen"] == 32
    assert all(torch.as_tensor(value).isfinite().all() for value in weights(state))


def small(name: str) -> Tokenizer:
    """A tokenizer of 16 px images and 4x4 latents with a quantizer as shipped, started from data."""
    torch.manual_seed(0)
    backbone = Backbone(patch=4, channels=(16,), layers=1, attention=False)
    tokenizer = Tokenizer.create(16, backbone, yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))
    with torch.no_grad():
        tokenizer.quantizer.initialize(tokenizer.latents(torch.rand(8, 3, 16, 16) * 2 - 1))
    return tokenizer


@pytest.fixture
def guard(tmp_path) -> StepGuard:
    return StepGuard(RunFolder(tmp_path), Accelerator(cpu=True), 3)


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_no_quantizer_swallows_latents_that_are_not_finite(name, tmp_path):
    tokenizer = small(name)
    objective = TokenizerObjective(tokenizer, None, 0.0)
    guard = StepGuard(RunFolder(tmp_path), Accelerator(cpu=True), 3, persistent_buffers(objective))
    for progress, spoilt in ((0.2, False), (0.4, True), (0.6, False)):
        images = torch.rand(8, 3, 16, 16) * 2 - 1
        if spoilt:
            images[0] = torch.nan
            before = {key: value.clone() for key, value in objective.state_dict().items()}
        guard.keep()
        objective.zero_grad()
        out = objective(images, None, None, 0.0)
        marked(out.loss, *out.terms.values()).backward()
        norm = nn.utils.clip_grad_norm_(list(objective.parameters()), 1.0)
        good = guard.judge(norm)
        guard.restore(good)
        objective.anneal(progress)
        assert bool(good) is not spoilt
        if spoilt:
            after = objective.state_dict()
            moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
            assert all(key.rpartition(".")[2] in SCHEDULES for key in moved), moved
    assert all(value.isfinite().all() for key, value in objective.state_dict().items() if "anchor_distances" not in key)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_half_precision_changes_no_index(name, precision):
    """Whatever the encoder's precision: the same float32 features give the indices of float32, in a training too."""
    tokenizer = small(name)
    images = torch.rand(8, 3, 16, 16) * 2 - 1
    features = tokenizer.features(images).detach()
    encoder: Any = Given(features.permute(0, 3, 1, 2))
    tokenizer.encoder = encoder
    latents = tokenizer.latents(images)
    state = {key: value.clone() for key, value in tokenizer.state_dict().items()}
    indices = {}
    for half in (False, True):
        for training in (False, True):
            tokenizer.load_state_dict(state)
            tokenizer.train(training)
            with torch.autocast("cpu", precision, enabled=half):
                assert tokenizer.latents(images).equal(latents)
                indices[half, training] = tokenizer.encode(images), tokenizer.quantize(latents).indices
    for training in (False, True):
        for whole, halved in zip(indices[False, training], indices[True, training], strict=True):
            assert torch.equal(whole, halved)
    assert torch.equal(*indices[True, False])


class Given(nn.Module):
    """An encoder with one answer."""

    def __init__(self, features: torch.Tensor) -> None:
        super().__init__()
        self.features, self.channels = features, features.shape[1]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features


def test_a_mark_leaves_finite_gradients_as_they_are():
    weight = torch.randn(5, requires_grad=True)

    def gradient(added: float, *others: float) -> torch.Tensor:
        return torch.autograd.grad(marked(weight.exp().sum() + added, *map(torch.tensor, others)), weight)[0]

    assert torch.equal(gradient(0, 3e38, -3e38), weight.exp())
    for broken in (torch.nan, torch.inf, -torch.inf):
        assert gradient(0, 1.0, broken).isnan().all() and gradient(broken).isnan().all()


def test_a_gradient_scaler_leaves_out_what_it_overflows_and_nobody_counts_it(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    weight = nn.Parameter(torch.ones(3))
    optimizer = AcceleratedOptimizer(torch.optim.AdamW([weight], 0.1, fused=True), device_placement=False, scaler=scaler)
    accelerator: Any = SimpleNamespace(scaler=scaler, device=torch.device("cpu"), is_main_process=True)
    guard = StepGuard(RunFolder(tmp_path), accelerator, 2)
    averages = Averages([weight], decay=0.9)

    def step(gradient: float) -> None:
        weight.grad = torch.full((3,), gradient) * scaler.scale(torch.ones(()))
        scaler.unscale_(optimizer.optimizer)
        good = guard.judge(nn.utils.clip_grad_norm_([weight], 1.0))
        step_if(good, optimizer)
        averages.step_if(good, [weight])
        guard.note(good, {"gradient": torch.tensor(gradient)}, 8, 0.1)

    for gradient, scale, moves in ((math.inf, 4.0, False), (1.0, 4.0, True), (math.inf, 2.0, False), (math.nan, 1.0, False)):
        before = weight.detach().clone(), averages.shadow_params[0].clone()
        step(gradient)
        assert scaler.get_scale() == scale
        assert torch.equal(weight, before[0]) is not moves and torch.equal(averages.shadow_params[0], before[1]) is not moves
    assert guard.take() == {}
    step(math.nan)
    step(math.nan)  # below a scale of 1
    with pytest.raises(UserError, match=r"2 steps in a row .* not finite: gradient; there is no snapshot yet"):
        guard.flush()


def test_the_counts_outlive_a_snapshot(guard, tmp_path):
    bad, terms = torch.tensor(False), {"pixel": torch.tensor(torch.inf), "peak": torch.tensor(0.5)}
    guard.note(bad, terms, 8, 1e-3)
    guard.note(bad, terms, 16, 1e-3)
    again = StepGuard(guard.run, guard.accelerator, 3)
    again.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    again.note(bad, terms, 24, 1e-3)
    with pytest.raises(UserError, match=r"3 steps in a row .* after 8 images, lr 0.001, not finite: pixel; "):
        again.take()
