"""The priors' benchmarks: what their summaries make of measurements."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks import lgq_repository
from benchmarks.parallel_ar import loss
from benchmarks.prior import summary


def row(part, writing, seconds, **more):
    return {"part": part, "writing": writing, "batch": 1, "seconds_per_image": seconds, **more}


def test_the_summary_takes_medians_and_scales_to_the_tokens_a_pass_of_the_trained_prior():
    rows = [
        *(row("ahead", "llama_static", seconds) for seconds in (5.0, 4.0, 90.0)),
        row("ahead", "ours", 2.0, tokens_per_pass=2.0),
        row("ahead_large", "llama_static", 12.0),
        row("ahead_large", "ours", 3.0, tokens_per_pass=4.0),
    ]
    found = {(entry["part"], entry["writing"]): entry for entry in summary(rows)}
    assert found["ahead", "ours"]["times_llama_static"] == 2.5 and found["ahead", "ours"]["tokens_per_pass"] == 2.0
    assert "at_trained" not in found["ahead", "ours"] and "tokens_per_pass" not in found["ahead", "llama_static"]
    # half as many tokens a pass: twice the passes of the same length
    assert found["ahead_large", "ours"]["times_llama_static"] == 4.0
    assert found["ahead_large", "ours"]["at_trained"] == {"times_llama_static": 2.0}
    assert "at_trained" not in summary(rows[-2:])[-1]


def test_the_repositorys_networks_have_its_parameters_and_its_step_learns():
    """Counts of its own classes at these sizes, commit 9d78742: Encoder(3, 128, 64), BidirectionalTransformer."""
    with torch.device("meta"):
        networks = lgq_repository.Encoder(), lgq_repository.Transformer(16384, 1000, 12, 512, 8)
    assert [sum(each.numel() for each in network.parameters()) for network in networks] == [13_995_712, 51_594_730]
    transformer = lgq_repository.Transformer(16, 3, 1, 32, 2)
    tokens, labels = torch.randint(16, (2, 256)), torch.tensor([0, 2])
    loss = transformer(tokens, labels)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(16 + 2 + 3), rel=0.3) and transformer.bias.grad is not None
    z, codebook = torch.randn(20, 4), torch.randn(9, 4)
    assert torch.equal(lgq_repository.assign(z, codebook), torch.cdist(z, codebook).argmin(1))


def test_what_a_parallel_prior_loses_is_a_difference_with_the_errors_of_both_sides():
    plain = {"fd": [200.0, 3.0], "kid": [0.10, 0.03]}
    found = loss({"changes": {"order": "halton"}, "fd": [210.0, 4.0], "kid": [0.08, 0.04]}, plain, 8)
    assert (found["order"], found["tokens_per_step"]) == ("halton", 8)
    assert found["fd"] == pytest.approx([10.0, 5.0]) and found["kid"] == pytest.approx([-0.02, 0.05])
