"""Tiny tokenizers for the tests of stage 1; tests of quantizers alone do not need them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from stage1_tokenizer.backbone import Backbone
from stage1_tokenizer.quantizers.catalogue import settings
from stage1_tokenizer.tokenizer import Tokenizer
from stage1_tokenizer.vision import load_vision


@pytest.fixture
def make_tokenizer() -> Callable[..., Tokenizer]:
    """A tokenizer of 16 px images and 4x4 tokens: its quantizer by name, with options, and a vision network as its encoder."""

    def make(name: str = "vq", vision: dict[str, Any] | None = None, **options: Any) -> Tokenizer:
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"levels": [4, 3]} if name == "fsq" else {"codebook_size": 16, "dim": 4}
        backbone = Backbone(patch=2, channels=(16, 16), layers=1, attention=False, pretrained=vision is not None)
        tokenizer = Tokenizer.create(16, backbone, {"name": name, **sizes, **options}, vision)
        if vision is not None:
            tokenizer.encoder.load_state_dict(load_vision(vision, tokenizer.grid).state_dict())
        with torch.no_grad():
            tokenizer.quantizer.initialize(tokenizer.latents(torch.rand(8, 3, 16, 16) * 2 - 1))
        return tokenizer

    return make


@pytest.fixture
def shipped_tokenizer() -> Callable[[str], Tokenizer]:
    """A tokenizer of 16 px images and 4x4 latents with a quantizer as shipped, started from data."""

    def make(name: str) -> Tokenizer:
        torch.manual_seed(0)
        backbone = Backbone(patch=2, channels=(16, 16), layers=1, attention=False)
        tokenizer = Tokenizer.create(16, backbone, settings(name))
        with torch.no_grad():
            tokenizer.quantizer.initialize(tokenizer.latents(torch.rand(8, 3, 16, 16) * 2 - 1))
        return tokenizer

    return make


@pytest.fixture
def images() -> torch.Tensor:
    """Eight images of 16 px in [-1, 1]."""
    return torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
