"""VF alignment and self-distillation against plain writings, and the same for any cut of the batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from stage1_tokenizer.guidance import VisionGuide, marginal_cosine, marginal_distances
from stage1_tokenizer.losses import PatchDiscriminator
from stage1_tokenizer.objective import TokenizerObjective
from stage1_tokenizer.vision import load_vision

LITE0 = {"name": "efficientnet_lite0", "stride": 8}


@pytest.fixture(scope="module")
def network():
    """What latents of 4x4 tokens are compared with: 40 channels."""
    return load_vision(LITE0, (4, 4))


@pytest.fixture
def guided(make_tokenizer, network):
    """The objective of a tokenizer with a guide; the encoder is a moved copy of the network if `pretrained`."""

    def make(pretrained=False, quantizer="simvq", thaw=0.5, **options):
        settings = {"vf_weight": 0.2, "vf_adaptive": True, "vf_margins": (0.3, 0.1), "distillation_weight": 0.0} | options
        tokenizer = make_tokenizer(quantizer, LITE0 if pretrained else None, dim=6)
        if pretrained:
            with torch.no_grad():
                for parameter in tokenizer.encoder.parameters():
                    parameter.add_(0.02 * torch.randn_like(parameter))
        guide = VisionGuide(network, tokenizer.quantizer.input_dim, **settings)
        objective = TokenizerObjective(tokenizer, None, 0.0, guide, thaw if pretrained else 0.0).train()
        objective.anneal(1.0)
        return objective

    return make


@pytest.mark.parametrize("margins", [(0.0, 0.0), (0.5, 0.25)])
def test_the_two_losses_are_those_of_the_paper(margins):
    draw = torch.Generator().manual_seed(0)
    ours, z, f = (torch.randn(2, 5, c, generator=draw, dtype=torch.float64) for c in (7, 3, 7))

    def cos(a, b):
        return (a @ b) / (a.norm() * b.norm())

    for image in range(2):
        point = [torch.relu(1 - margins[0] - cos(ours[image, i], f[image, i])) for i in range(5)]
        pairs = [
            torch.relu((cos(z[image, i], z[image, j]) - cos(f[image, i], f[image, j])).abs() - margins[1])
            for i in range(5)
            for j in range(5)
        ]
        torch.testing.assert_close(marginal_cosine(ours, f, margins[0])[image], torch.stack(point).mean())
        torch.testing.assert_close(marginal_distances(z, f, margins[1])[image], torch.stack(pairs).mean())


def test_aligned_latents_cost_nothing_whatever_their_length():
    f = torch.randn(2, 5, 4)
    assert marginal_cosine(f * torch.rand(2, 5, 1), f, 1e-5).max() == 0
    assert marginal_distances(f * torch.rand(2, 5, 1), f, 1e-5).max() == 0
    assert marginal_cosine(-f, f, 0.5).min() > 1.4


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_gradient_is_that_of_a_plain_writing(guided, network, images, adaptive, frozen):
    objective = guided(pretrained=True, distillation_weight=0.7, vf_adaptive=adaptive)
    objective.anneal(0.0 if frozen else 1.0)
    out = objective(images, None, None, 0.0)
    out.loss.backward()
    found = {name: parameter.grad for name, parameter in objective.named_parameters()}
    found = {name: None if gradient is None else gradient.clone() for name, gradient in found.items()}

    objective.zero_grad()
    tokenizer, guide = objective.tokenizer, objective.guide
    targets = network(images).permute(0, 2, 3, 1)
    features = tokenizer.encoder(images).permute(0, 2, 3, 1)
    features = features.detach() if frozen else features
    latents = tokenizer.project(features)
    quantized = tokenizer.quantize(latents)
    pixel = (tokenizer.render(quantized.codes) - images).abs().mean()
    z, f = latents.flatten(1, 2), targets.flatten(1, 2)
    cosines = F.cosine_similarity(guide.to_features(z), f, dim=2)
    ours, theirs = (F.cosine_similarity(v[:, :, None], v[:, None], dim=3) for v in (z, f))
    alignment = F.relu(0.7 - cosines).mean() + F.relu((ours - theirs).abs() - 0.1).mean()
    weight = torch.tensor(0.2)
    if adaptive:
        last = tokenizer.to_code.weight
        gradients = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (pixel, alignment)]
        weight = 0.2 * gradients[0] / (gradients[1] + 1e-4)
    loss = pixel + sum(quantized.losses.values()) + weight * alignment
    terms = {"pixel": pixel, "alignment": alignment, "vf_weight": weight}
    if not frozen:
        terms["distillation"] = (features - targets).square().mean()
        loss = loss + 0.7 * terms["distillation"]
    loss.backward()
    for name, parameter in objective.named_parameters():
        if frozen and name.startswith("tokenizer.encoder"):
            assert found[name] is None and parameter.grad is None
        else:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
            assert parameter.grad.any(), name
    assert out.terms.keys() == terms.keys() | {f"quantizer/{name}" for name in quantized.losses}
    for name, value in terms.items():
        torch.testing.assert_close(out.terms[name], value.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("gan", [True, False])
def test_micro_batches_change_nothing(guided, images, pretrained, gan):
    objective = guided(pretrained, distillation_weight=0.7 if pretrained else 0.0)
    discriminator = PatchDiscriminator(8, 2).eval() if gan else None
    outcomes = []
    for micro_batch in (None, 4, 3):
        trained = copy.deepcopy(objective)
        out = trained(images, micro_batch, discriminator, torch.tensor(0.3))
        out.loss.backward()
        outcomes.append((out.terms, {name: parameter.grad for name, parameter in trained.named_parameters()}))
    assert {"alignment", "vf_weight"} <= outcomes[0][0].keys() and ("distillation" in outcomes[0][0]) == pretrained
    for terms, gradients in outcomes[1:]:
        torch.testing.assert_close(terms, outcomes[0][0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(gradients, outcomes[0][1], rtol=2e-3, atol=1e-6)


def test_the_projection_is_trained_and_is_no_part_of_the_tokenizer(guided):
    objective = guided()
    own = {f"tokenizer.{name}" for name in objective.tokenizer.state_dict()}
    assert set(objective.state_dict()) - own == {"guide.to_features.weight"}
    assert objective.guide.to_features.weight.requires_grad


def test_without_alignment_and_while_frozen_the_network_is_not_asked(guided, images):
    objective = guided(pretrained=True, vf_weight=0.0, distillation_weight=1.0)
    objective.guide._judges["network"] = None
    objective.anneal(0.2)
    terms = objective(images, None, None, 0.0).terms
    assert "distillation" not in terms and "alignment" not in terms
    assert all(name.startswith("tokenizer.") for name in objective.state_dict())


def test_a_published_encoder_starts_with_no_distance_to_itself(make_tokenizer, network, images):
    tokenizer = make_tokenizer("simvq", LITE0)
    guide = VisionGuide(network, 4, vf_weight=0.0, vf_adaptive=True, vf_margins=(0.5, 0.25), distillation_weight=1.0)
    objective = TokenizerObjective(tokenizer, None, 0.0, guide, 0.5)
    objective.anneal(0.5)
    assert objective(images, None, None, 0.0).terms["distillation"] == 0
