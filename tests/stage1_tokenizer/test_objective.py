"""The loss of a global batch does not depend on how it is cut."""

from __future__ import annotations

import copy

import pytest
import torch

from pipeline.core.perceptual import load_perceptual
from stage1_tokenizer.losses import PatchDiscriminator
from stage1_tokenizer.objective import TokenizerObjective


def outcome(tokenizer, images, micro_batch, discriminator, perceptual=None):
    """Terms, gradients by name and the gradients at the last layer after one step's loss, on copies."""
    tokenizer, discriminator = copy.deepcopy(tokenizer).train(), copy.deepcopy(discriminator)
    out = TokenizerObjective(tokenizer, perceptual, 0.5)(images, micro_batch, discriminator, torch.tensor(0.3))
    out.loss.backward()
    gradients = {name: parameter.grad for name, parameter in tokenizer.named_parameters()}
    judge = None if discriminator is None else discriminator.state_dict()
    return out, gradients, judge


@pytest.mark.parametrize("name", ["lgq", "vq_ema", "vaevq"])
@pytest.mark.parametrize("gan", [True, False])
def test_micro_batches_change_nothing(make_tokenizer, images, name, gan):
    tokenizer = make_tokenizer(name)
    tokenizer.quantizer.anneal(0.5)
    discriminator = PatchDiscriminator(8, 2).eval() if gan else None
    whole, gradients, _ = outcome(tokenizer, images, None, discriminator)
    assert ("gan" in whole.terms) == gan and all(bool(gradient.any()) == gan for gradient in whole.last_layer)
    assert any(name.startswith("quantizer/") for name in whole.terms)
    for micro_batch in (8, 4, 2, 3):
        parts, found, judge = outcome(tokenizer, images, micro_batch, discriminator)
        assert parts.indices.equal(whole.indices)
        torch.testing.assert_close(parts.terms, whole.terms, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(parts.reconstruction, whole.reconstruction, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(parts.last_layer, whole.last_layer, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found, gradients, rtol=1e-3, atol=1e-6)
        if discriminator is not None:
            assert all(value.equal(judge[key]) for key, value in discriminator.state_dict().items()), "the judge changed"  # pyright: ignore[reportOptionalSubscript]


def test_the_perceptual_network_is_a_judge_and_no_part(make_tokenizer, images):
    perceptual = load_perceptual("efficientnet_lite0")
    assert perceptual is not None
    tokenizer = make_tokenizer("vq")
    objective = TokenizerObjective(tokenizer, perceptual, 0.5)
    assert set(objective.state_dict()) == {f"tokenizer.{name}" for name in tokenizer.state_dict()}
    whole, gradients, _ = outcome(tokenizer, images[:4], None, None, perceptual)
    parts, found, _ = outcome(tokenizer, images[:4], 2, None, perceptual)
    assert whole.terms["perceptual"] > 0
    torch.testing.assert_close(parts.terms, whole.terms, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found, gradients, rtol=1e-2, atol=1e-5)


def test_the_gradient_is_of_the_mean_over_the_images(make_tokenizer, images):
    tokenizer = make_tokenizer("fsq").train()  # no terms of its own
    TokenizerObjective(tokenizer, None, 0.0)(images, None, None, 0.0).loss.backward()
    found = tokenizer.decoder.last_weight.grad.clone()
    tokenizer.zero_grad()
    (tokenizer.render(tokenizer.quantize(tokenizer.latents(images)).codes) - images).abs().mean().backward()
    torch.testing.assert_close(found, tokenizer.decoder.last_weight.grad)


def test_further_codes_are_rendered_and_judged_like_the_codes(make_tokenizer, images):
    # VAEVQ, eq. 4: |x - D(z_c)| + |x - D(z_q)|, and the gradient of every term of its own
    perceptual = load_perceptual("efficientnet_lite0_native")
    tokenizer = make_tokenizer("vaevq").train()
    large = torch.nn.functional.interpolate(images, (32, 32))[:, :, ::2, ::2]
    again = copy.deepcopy(tokenizer)  # draws the same noise
    out = TokenizerObjective(tokenizer, perceptual, 0.5)(large, None, None, 0.0)
    out.loss.backward()

    quantized = again.quantize(again.latents(large))
    (sample,) = quantized.further
    assert not sample.equal(quantized.codes)
    pictures = [again.render(codes) for codes in (quantized.codes, sample)]
    pixel = [(picture - large).abs().mean() for picture in pictures]
    seen = [perceptual(picture, large).mean() for picture in pictures]  # pyright: ignore[reportOptionalCall]
    torch.stack([*pixel, *(0.5 * value for value in seen), *quantized.losses.values()]).sum().backward()
    for (name, ours), theirs in zip(tokenizer.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6, msg=name)
    plain = {"pixel": pixel[0], "perceptual": seen[0], "further/pixel": pixel[1], "further/perceptual": seen[1]}
    plain |= {f"quantizer/{name}": loss for name, loss in quantized.losses.items()}
    assert out.terms.keys() == plain.keys()
    torch.testing.assert_close(out.terms, {name: value.detach() for name, value in plain.items()}, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out.reconstruction, pictures[0].detach())
