from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from pipeline.core.token_spec import TokenSpec
from stage1_tokenizer.backbone import Backbone, token_grid
from stage1_tokenizer.tokenizer import Tokenizer

NAMES = ("lgq", "vq_ema", "fsq")


@pytest.mark.parametrize("name", NAMES)
def test_images_become_tokens_and_images_again(make_tokenizer, images, name):
    tokenizer = make_tokenizer(name).eval()
    size = 12 if name == "fsq" else 16
    assert tokenizer.spec == TokenSpec(sizes=(size,), scales=((4, 4),), image_size=(16, 16))
    tokens = tokenizer.encode(images)
    assert tokens.shape == (8, 16, 1) and tokens.dtype == torch.int64
    assert tokens.min() >= 0 and tokens.max() < size and len(tokens.unique()) > 1
    decoded = tokenizer.decode(tokens)
    assert decoded.shape == images.shape and decoded.isfinite().all()
    assert not tokens.requires_grad and not decoded.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_decoding_tokens_is_rendering_their_codes(make_tokenizer, images, name):
    tokenizer = make_tokenizer(name).eval()
    with torch.no_grad():
        quantized = tokenizer.quantize(tokenizer.latents(images))
        assert tokenizer.decode(quantized.indices).equal(tokenizer.render(quantized.codes))


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_tokenizer_is_the_same(make_tokenizer, images, name, tmp_path):
    tokenizer = make_tokenizer(name).eval()
    tokenizer.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path).eval()
    assert again.spec == tokenizer.spec
    tokens = tokenizer.encode(images)
    assert again.encode(images).equal(tokens) and again.decode(tokens).equal(tokenizer.decode(tokens))
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert json.loads((tmp_path / "config.json").read_text())["quantizer_config"]["name"] == name


def test_images_of_another_size_are_refused(make_tokenizer):
    with pytest.raises(ValueError, match=r"images of \(16, 24\) pixels; this tokenizer takes \(16, 16\)"):
        make_tokenizer().encode(torch.zeros(1, 3, 16, 24))


@pytest.mark.parametrize("size, nearest", [(18, 20), (17, 16), (2, 4), (6, 8)])
def test_a_size_that_the_factor_does_not_divide_is_refused_with_the_nearest_that_it_does(size, nearest):
    with pytest.raises(ValueError, match=f"image_size: {size} pixels cannot be cut into tokens of 4; use {nearest}, for"):
        token_grid((size, size), 4)
    assert token_grid((8, 12), 4) == (2, 3)


@pytest.mark.parametrize("changes", [{"channels": (17,)}, {"channels": ()}, {"patch": 0}, {"layers": 0}])
def test_impossible_backbones_are_refused(changes):
    with pytest.raises(ValueError, match="; give"):
        replace(Backbone(), **changes)


def test_an_unknown_option_is_refused(make_tokenizer):
    with pytest.raises(ValueError, match="comitment_weight"):
        make_tokenizer("vq", comitment_weight=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_autocast_does_not_reach_the_quantizer(make_tokenizer, images, name, training):
    tokenizer = make_tokenizer(name).train(training)
    latents = tokenizer.latents(images).detach()
    expected = tokenizer.quantize(latents)
    with torch.autocast("cpu", torch.bfloat16):
        assert tokenizer.latents(images).dtype == torch.float32
        found = tokenizer.quantize(latents)
    assert found.indices.equal(expected.indices)
    if not training:  # in training a moving codebook's candidates have been replaced in between
        assert found.codes.equal(expected.codes)
    assert found.codes.dtype == torch.float32


def test_gradients_reach_every_parameter(make_tokenizer, images):
    tokenizer = make_tokenizer("vq").train()
    quantized = tokenizer.quantize(tokenizer.latents(images))
    (tokenizer.render(quantized.codes).square().mean() + sum(quantized.losses.values())).backward()
    without = [name for name, parameter in tokenizer.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert without == []
