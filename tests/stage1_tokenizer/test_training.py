from __future__ import annotations

import torch
from torch import nn

from pipeline.core.snapshot import load_newest_snapshot, save_snapshot
from stage1_tokenizer.training import match_layouts


def test_a_fused_step_after_loading_is_the_step_before_saving(tmp_path):
    # snapshots hold plain contiguous tensors, training is in channels-last: a fused step would mix up the moments
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    again = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    again.load_state_dict(layer.state_dict())
    first, second = (torch.optim.AdamW(model.parameters(), 0.1, fused=True) for model in (layer, again))
    gradients = [torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last) for _ in range(2)]

    def step(model: nn.Conv2d, optimizer: torch.optim.Optimizer, gradient: torch.Tensor) -> None:
        model.weight.grad = gradient.clone()
        optimizer.step()

    step(layer, first, gradients[0])
    again.load_state_dict(layer.state_dict())
    save_snapshot(tmp_path, 1, {"optimizer": first.state_dict()})
    state = load_newest_snapshot(tmp_path)
    assert state is not None
    second.load_state_dict(state["optimizer"])
    match_layouts(second)
    step(layer, first, gradients[1])
    step(again, second, gradients[1])
    assert torch.equal(layer.weight, again.weight)
