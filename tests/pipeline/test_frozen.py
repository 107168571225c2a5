"""Stage 2 leaves stage 1 alone: nothing that encodes, samples, edits or saves changes a weight, a buffer or a mode."""

# a call may give a tuple
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import pytest
import torch

from pipeline.api import load_pipeline


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}, [module.training for module in model.modules()]


@pytest.mark.parametrize("kind", ["maskgit", "ar"])
def test_using_a_pipeline_changes_neither_weights_nor_modes(chain, tmp_path, kind):
    generator = load_pipeline(getattr(chain, kind))
    generator.set_progress_bar_config(disable=True)
    models = (generator.tokenizer, generator.prior)
    before = [state(model) for model in models]
    assert not any(training for _, modes in before for training in modes)
    images = (generator([1, 2], [0, 1], output_type="pt").images * 255).round().to(torch.uint8)
    generator.vary(images, 0.5, [1, 2])
    generator.interpolate(1, 2, 2, guidance_scale=2.0)
    generator.save_pretrained(tmp_path)
    for model, (weights, modes) in zip(models, before, strict=True):
        after, now = state(model)
        assert now == modes and after.keys() == weights.keys()
        assert all(after[name].equal(value) for name, value in weights.items())
        assert all(parameter.grad is None for parameter in model.parameters())
