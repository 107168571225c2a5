"""The priors' benchmarks: what their summaries make of measurements."""

from __future__ import annotations

import itertools
import math
import sys

import pytest
import torch

from benchmarks import lgq_repository
from benchmarks import prior as benchmark
from benchmarks.measuring import device_name
from benchmarks.prior_summary import advised, summary, table
from pipeline.core.errors import UserError
from pipeline.core.files import read_json


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


def test_the_table_has_one_token_a_pass_beside_the_lookahead():
    rows = [
        row("ahead_large", writing, seconds) for writing, seconds in (("llama_static", 6.0), ("ours_plain", 5.0), ("ours", 2.5))
    ]
    rows.append(row("ahead_large", "ours", 1.0, tokens_per_pass=1.7, lookahead=3) | {"batch": 4})
    lines = [line.split() for line in table(summary(rows)).splitlines()]
    assert lines[2] == ["ahead_large", "1", "ours_plain", "1", "0.200", "1", "llama_static", "1.20"]
    assert lines[3] == ["ahead_large", "1", "ours", "8", "0.400", "1", "llama_static", "2.40,", "ours_plain", "2.00"]
    assert lines[4] == ["ahead_large", "4", "ours", "3", "1.000", "1"]
    assert [advised(batch) for batch in (1, 2, 4, 16, 128)] == [8, 8, 4, 1, 1]


def test_rounds_are_added_to_a_file_and_a_prior_does_not_mix_with_another(tmp_path, monkeypatch):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["prior", "--parts", "ahead", "--device", "cpu", "--out", f"{out}", *words])
        benchmark.main()
        return read_json(out)

    out, number = tmp_path / "out.json", itertools.count(1)
    hashes = iter("aaab")
    monkeypatch.setattr(benchmark, "in_a_process", lambda module, case: {"seconds_per_image": float(next(number))})
    monkeypatch.setattr(benchmark, "trained_settings", lambda run: {"sha256": next(hashes)})
    first, again, third = run("--rounds", "1"), run("--rounds", "1"), run("--rounds", "3")
    assert first == again and first["device"] == device_name("cpu")
    cases = sum(map(len, benchmark.CASES["ahead"].values()))
    assert [row["round"] for row in third["rows"]] == [0] * cases + [1] * cases + [2] * cases and next(number) == 3 * cases + 1
    assert {entry["rounds"] for entry in third["summary"]} == {3} and all("code" in row for row in third["rows"])
    with pytest.raises(UserError, match="has `ahead` of another prior; give another --out"):
        run("--rounds", "4")
    assert read_json(out) == third


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
