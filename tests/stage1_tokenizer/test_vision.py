"""Pretrained networks give the published features on the tokens' grid, and a tokenizer with one needs nothing else to load."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModel

from pipeline.core.config import CONFIGS, known_names, read_yaml
from pipeline.core.efficientnet import TAPS, Lite0Features
from pipeline.core.errors import UserError
from stage1_tokenizer.backbone import Backbone
from stage1_tokenizer.tokenizer import Tokenizer
from stage1_tokenizer.vision import Lite0Network, VisionNetwork, build_vision, load_vision

LITE0 = {"name": "efficientnet_lite0", "stride": 8}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
DINO = {**SMALL, "model_type": "dinov2", "patch_size": 7, "image_size": 42}
REGISTERS = {**DINO, "model_type": "dinov2_with_registers", "num_register_tokens": 3}
SIGLIP = {**SMALL, "model_type": "siglip_vision_model", "patch_size": 8, "image_size": 24, "vision_use_head": False}


def save_model(architecture, folder) -> dict:
    """A model with weights of our own, as a folder; the settings of the vision network that loads them."""
    torch.manual_seed(5)
    AutoModel.from_config(AutoConfig.for_model(**architecture)).save_pretrained(folder)
    return settings(architecture, folder)


def settings(architecture, folder) -> dict:
    values = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    return {"name": "transformers", "weights": str(folder), **values, "architecture": architecture}


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_efficientnet_gives_its_taps_of_the_enlarged_images(images, stride):
    network = load_vision({**LITE0, "stride": stride}, (4, 4))
    resized = torch.nn.functional.interpolate(images, (4 * stride, 4 * stride), mode="bilinear", antialias=True)
    whole, number = Lite0Features(), (2, 4, 8, 16).index(stride)
    tap = whole.stem((127.5 * (resized + 1) - 127) / 128)
    for block in whole.blocks[: TAPS[number] + 1]:
        tap = block(tap)
    if stride > 4:  # smaller images the taps refuse
        torch.testing.assert_close(tap, whole.taps(resized)[number], rtol=1e-3, atol=1e-4)
    found = network(images)
    assert found.shape == (8, network.channels, 4, 4)
    torch.testing.assert_close(found, tap, rtol=1e-3, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("architecture", [DINO, REGISTERS, SIGLIP], ids=lambda value: value["model_type"])
@pytest.mark.parametrize("grid", [(4, 4), (3, 3), (2, 5)])
def test_a_transformer_gives_its_patches_of_the_resized_normalised_images(images, tmp_path, architecture, grid):
    config = save_model(architecture, tmp_path)
    network = load_vision(config, grid)
    found = network(images)
    model = AutoModel.from_pretrained(tmp_path).eval()
    patch = architecture["patch_size"]
    resized = torch.nn.functional.interpolate(images, (grid[0] * patch, grid[1] * patch), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    options = {"interpolate_pos_encoding": True} if architecture is SIGLIP else {}
    hidden = model(((resized + 1) / 2 - mean) / std, **options).last_hidden_state
    first = {"dinov2": 1, "dinov2_with_registers": 4, "siglip_vision_model": 0}[architecture["model_type"]]
    assert hidden.shape[1] == first + grid[0] * grid[1]
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), hidden[:, first:])


def test_the_image_half_of_a_two_part_model_is_enough(images, tmp_path):
    torch.manual_seed(5)
    vision = {key: value for key, value in SIGLIP.items() if key not in ("model_type", "vision_use_head")}
    text = {**SMALL, "vocab_size": 20, "projection_size": 32}
    both = AutoModel.from_config(AutoConfig.for_model("siglip", vision_config=vision, text_config=text)).eval()
    both.save_pretrained(tmp_path)
    network = load_vision(settings(SIGLIP, tmp_path), (3, 3))
    pixels = torch.randn(2, 3, 24, 24)
    expected = both.vision_model(pixel_values=pixels).last_hidden_state  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(network.body(pixels).last_hidden_state, expected)


@pytest.mark.parametrize("architecture", [None, DINO, SIGLIP], ids=["lite0", "dinov2", "siglip"])
def test_a_saved_tokenizer_needs_nothing_but_its_folder(make_tokenizer, images, tmp_path, architecture):
    source = tmp_path / "source"
    vision = LITE0 if architecture is None else save_model(architecture, source)
    tokenizer = make_tokenizer("simvq", vision, dim=48).eval()
    tokenizer.save_pretrained(tmp_path / "saved")
    shutil.rmtree(source, ignore_errors=True)
    again = Tokenizer.from_pretrained(tmp_path / "saved").eval()
    tokens = tokenizer.encode(images)
    assert len(tokens.unique()) > 1
    assert again.encode(images).equal(tokens) and again.decode(tokens).equal(tokenizer.decode(tokens))
    assert json.loads((tmp_path / "saved/config.json").read_text())["vision_config"] == vision
    state, theirs = tokenizer.state_dict(), again.state_dict()
    assert state.keys() == theirs.keys() and all(theirs[name].equal(value) for name, value in state.items())


def test_a_vision_network_has_no_train_mode(make_tokenizer):
    tokenizer = make_tokenizer("simvq", LITE0).train()
    assert tokenizer.decoder.training
    assert not any(module.training for module in tokenizer.encoder.modules())


def test_a_frozen_encoder_gets_no_gradient_and_a_thawed_one_all(make_tokenizer, images):
    tokenizer = make_tokenizer("simvq", LITE0).train()
    for frozen in (True, False):
        tokenizer.frozen = frozen
        tokenizer.zero_grad()
        tokenizer.latents(images).square().mean().backward()
        given = [parameter.grad is not None and bool(parameter.grad.any()) for parameter in tokenizer.encoder.parameters()]
        assert not any(given) if frozen else all(given)
        assert tokenizer.to_code.weight.grad.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "efficientnet_lit0"}, "vision.name: 'efficientnet_lit0' is unknown; did you mean efficientnet_lite0"),
        ({"strid": 8}, "option of efficientnet_lite0: 'strid' is unknown; did you mean stride"),
        ({"stride": 32}, "stride: 32; EfficientNet-Lite0 has grids of 2, 4, 8, 16 pixels"),
        (settings({"model_type": "resnet"}, "x"), "resnet has no patches"),
    ],
    ids=["name", "option", "stride", "no patches"],
)
def test_a_mistake_gets_a_line_that_helps(changes, message):
    config = changes if "architecture" in changes else {**LITE0, **changes}
    with pytest.raises(ValueError, match=message):
        build_vision(config, (4, 4))


def test_a_backbone_and_a_vision_network_belong_together():
    with pytest.raises(ValueError, match=r"backbone.pretrained: true needs"):
        Tokenizer.create(16, Backbone(channels=(16,), pretrained=True), {"name": "vq", "dim": 4, "codebook_size": 8})


def test_weights_that_are_nowhere_are_one_clear_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = read_yaml(CONFIGS / "vision/dinov2.yaml") | {"architecture": DINO}
    with pytest.raises(UserError) as raised:
        load_vision(config, (4, 4))
    line = str(raised.value)
    assert "facebook/dinov2-base" in line and "vision=efficientnet_lite0" in line and "\n" not in line


@pytest.mark.parametrize("changes", [{"hidden_size": 64}, {"num_hidden_layers": 3}], ids=str)
def test_weights_of_another_architecture_are_one_clear_line(tmp_path, changes):
    config = save_model(DINO, tmp_path)
    with pytest.raises(UserError, match=r"vision.architecture: does not fit the weights .*; take the values") as raised:
        load_vision({**config, "architecture": {**DINO, **changes}}, (4, 4))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "channels", "side", "millions"), [("dinov2", 768, 14, 86.6), ("siglip2", 1152, 16, 412.6)])
def test_the_shipped_architectures_have_the_published_size(name, channels, side, millions):
    with torch.device("meta"):
        network = build_vision(read_yaml(CONFIGS / f"vision/{name}.yaml"), (16, 16))
    assert (network.channels, network.stride) == (channels, side)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=1)
    assert network(torch.empty(1, 3, 256, 256, device="meta")).shape == (1, channels, 16, 16)


def test_every_shipped_network_is_one_that_is_known():
    assert set(known_names("vision")) == {"dinov2", "efficientnet_lite0", "siglip2"}
    assert isinstance(build_vision(read_yaml(CONFIGS / "vision/efficientnet_lite0.yaml"), (2, 2)), Lite0Network)
    assert issubclass(Lite0Network, VisionNetwork)
