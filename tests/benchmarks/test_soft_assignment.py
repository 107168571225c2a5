"""The benchmark of soft assignment: all writings compute the same, and the summary and the plot say what the rows say."""

import pytest
import torch

from benchmarks import soft_assignment as benchmark
from benchmarks.soft_assignment_plot import draw


@pytest.mark.parametrize("rank", benchmark.RANKS)
def test_the_writings_compute_the_same_objective_and_gradient(rank, monkeypatch):
    monkeypatch.setattr(benchmark, "VECTORS", 200)
    z, codebook = (points.double().requires_grad_() for points in benchmark.data(300, rank, "cpu"))
    torch.testing.assert_close(z.square().sum(1), torch.full((200,), 64.0).double(), rtol=1e-3, atol=0)
    cotangent = torch.randn(200, 64, generator=torch.Generator().manual_seed(1)).double() / z.numel()
    for tau in benchmark.TEMPERATURES:
        expected = benchmark.published(z, codebook, cotangent, tau)
        for writing in ("dense", "streaming"):
            found = benchmark.WRITINGS[writing](z, codebook, cotangent, tau)
            for name in ("loss", "gradient_norm", "effective_codes"):
                assert found[name] == pytest.approx(expected[name], rel=1e-7)


def test_a_measurement_is_a_row(monkeypatch):
    monkeypatch.setattr(benchmark, "VECTORS", 100)
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)
    for writing in ("product", "nearest", "published", "streaming"):
        row = benchmark.measure(benchmark.Case("sizes", writing, 256, 64, 0.1, True, "cpu"))
        assert row["seconds"] > 0
        assert row["peak_mb"] >= 0
        assert row["gap_over_tau"] == pytest.approx(10, rel=0.5)  # the median gap is about the mean one


def test_memory_is_what_was_needed_beyond_what_was_there():
    kept = torch.ones(1 << 24)
    memory = benchmark.Memory("cpu")
    torch.ones(1 << 25).sum()
    assert memory.peak() == pytest.approx(1 << 27, rel=0.1)
    assert len(kept) == 1 << 24


def test_the_summary_takes_medians_and_ratios_and_the_plot_is_drawn(tmp_path):
    rows = []
    for writing, seconds, megabytes in (("published", 8.0, 100.0), ("nearest", 1.0, 4.0), ("streaming", 2.0, 5.0)):
        for repeat in range(3):
            case = {"part": "sizes", "writing": writing, "codes": 64, "rank": 4, "temperature": 1.0, "relative": False}
            rows.append({**case, "repeat": repeat, "seconds": seconds * (1, 1, 9)[repeat], "peak_mb": megabytes})
    rows.append({**rows[-1], "part": "schedule", "tau": 0.1, "skipped": 0.9, "repeat": 0})
    summary = benchmark.summary(rows)
    ours = next(row for row in summary if row["writing"] == "streaming" and row["part"] == "sizes")
    assert ours["repeats"] == 3
    assert (ours["seconds"], ours["time_of_published"], ours["memory_of_published"]) == (2.0, 0.25, 0.05)
    assert ours["time_of_nearest"] == 2.0
    draw({"device": "a test", "summary": summary}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
