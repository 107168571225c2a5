"""All priors on the tokens of every registered quantizer: they learn them, and what they sample can be decoded."""

from __future__ import annotations

import pytest
import torch

from pipeline.api import ImageGenerator
from pipeline.core.data.images import OrderedImages, ordered_batches
from pipeline.core.data.sources import load_data
from pipeline.core.errors import UserError
from stage1_tokenizer.backbone import Backbone
from stage1_tokenizer.quantizers import QUANTIZERS
from stage1_tokenizer.quantizers.catalogue import settings
from stage1_tokenizer.tokenizer import Tokenizer
from stage2_prior.priors import PRIORS, build_prior


@pytest.fixture(scope="module")
def batch():
    """An image of each of ten classes."""
    data = load_data("shapes", image_size=16, train_per_class=1, validation_per_class=1)
    return next(iter(ordered_batches(OrderedImages(data.validation, 16), 10)))


@pytest.fixture(scope="module", params=sorted(QUANTIZERS))
def encoded(request, batch):
    """A tokenizer with the shipped quantizer, started from these images' latents, and their tokens."""
    torch.manual_seed(0)
    pixels = batch["image"].float() / 127.5 - 1
    backbone = Backbone(patch=2, channels=(16, 16), layers=1, attention=False)
    tokenizer = Tokenizer.create(16, backbone, settings(request.param)).eval()
    with torch.no_grad():
        tokenizer.quantizer.initialize(tokenizer.latents(pixels))
    return tokenizer, tokenizer.encode(pixels)


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_learns_the_tokens_and_its_samples_are_images(encoded, batch, name):
    tokenizer, tokens = encoded
    torch.manual_seed(0)
    if name == "var" and len(tokenizer.spec.scales) == 1:
        with pytest.raises(UserError, match="several scales"):
            build_prior(name, **tokenizer.spec.to_dict(), num_classes=10)
        return
    prior = build_prior(name, **tokenizer.spec.to_dict(), num_classes=10, depth=1, width=32, heads=2, dropout=0.0)
    noise = prior.draw_noise(len(tokens), torch.Generator().manual_seed(0))

    def bits():
        return prior.eval().validation_bits(tokens, batch["label"], noise).mean().item()

    before = bits()
    assert before == pytest.approx(tokenizer.spec.bits_per_image, rel=0.05)  # a fresh one knows nothing
    optimizer = torch.optim.AdamW(prior.parameters(), 1e-2)
    for _ in range(8):
        (prior.train()(tokens, batch["label"], noise) / prior.loss_count(noise)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert bits() < 0.8 * before

    generator = ImageGenerator(tokenizer, prior.eval())
    sampled = prior.sample([3, 4, 3], generator.options(), [0, 1, 2]).tokens
    assert sampled.shape == (3, tokenizer.spec.t, tokenizer.spec.d) and sampled.dtype == torch.int64
    assert (sampled >= 0).all() and (sampled < torch.tensor(tokenizer.spec.sizes)).all()
    assert not torch.equal(sampled[0], sampled[2])
    assert generator.decode(sampled).shape == (3, 3, 16, 16)
