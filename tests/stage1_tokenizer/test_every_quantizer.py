"""Every registered quantizer in a tokenizer: a step of training, then a file and back, bit for bit."""

from __future__ import annotations

import json

import pytest
import torch

from stage1_tokenizer.objective import TokenizerObjective
from stage1_tokenizer.quantizers import QUANTIZERS
from stage1_tokenizer.tokenizer import Tokenizer


@pytest.fixture(params=sorted(QUANTIZERS))
def trained(request, shipped_tokenizer, images):
    """The shipped one after a start from data and a step of training: all that changes has changed."""
    tokenizer = shipped_tokenizer(request.param)
    before = {key: value.clone() for key, value in tokenizer.state_dict().items()}
    optimizer = torch.optim.AdamW(tokenizer.parameters(), 1e-2)
    TokenizerObjective(tokenizer.train(), None, 0.0)(images, None, None, 0.0).loss.backward()
    optimizer.step()
    tokenizer.quantizer.anneal(0.3)
    assert not all(torch.equal(value, before[key]) for key, value in tokenizer.state_dict().items())
    return tokenizer.eval()


def test_a_saved_tokenizer_is_the_same_bit_for_bit(trained, images, tmp_path):
    trained.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path).eval()
    assert again.spec == trained.spec
    mine, theirs = trained.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in mine.items())
    tokens = trained.encode(images)
    assert tokens.shape == (len(images), trained.spec.t, trained.spec.d) and tokens.unique().numel() > 1
    assert torch.equal(again.encode(images), tokens)
    assert torch.equal(again.decode(tokens), trained.decode(tokens))
    assert json.loads((tmp_path / "config.json").read_text())["quantizer_config"] == trained.config["quantizer_config"]


def test_decoding_is_rendering_what_the_quantizer_chose(trained, images):
    with torch.no_grad():
        quantized = trained.quantize(trained.latents(images))
        assert torch.equal(trained.decode(quantized.indices), trained.render(quantized.codes))
