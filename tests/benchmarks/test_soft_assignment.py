"""The benchmark of soft assignment: all writings compute the same, and the summary and the plot say what the rows say."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import soft_assignment as benchmark
from benchmarks.soft_assignment_plot import draw
from pipeline.core.files import read_json

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("rank", benchmark.RANKS)
def test_the_writings_compute_the_same_objective_and_gradient(rank):
    z, codebook = (points.double().requires_grad_() for points in benchmark.data(200, 300, rank, "cpu"))
    torch.testing.assert_close(z.square().sum(1), torch.full((200,), 64.0).double(), rtol=1e-3, atol=0)
    cotangent = torch.randn(200, 64, generator=torch.Generator().manual_seed(1)).double() / z.numel()
    for tau in benchmark.TEMPERATURES:
        expected = benchmark.published(z, codebook, cotangent, tau)
        for writing in ("dense", "streaming"):
            found = benchmark.WRITINGS[writing](z, codebook, cotangent, tau)
            for name in ("loss", "gradient_norm", "effective_codes"):
                assert found[name] == pytest.approx(expected[name], rel=1e-7)


def test_a_measurement_is_a_row(monkeypatch):
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)
    for writing in ("product", "nearest", "published", "streaming"):
        row = benchmark.measure(benchmark.Case("sizes", writing, 100, 256, 64, 0.1, True, "cpu"))
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
    measured = (("published", 8.0, 100.0), ("nearest", 1.0, 4.0), ("streaming", 2.0, 5.0), ("product", 0.5, 4.0))
    for writing, seconds, megabytes in measured:
        for repeat in range(3):
            case = {"part": "sizes", "writing": writing, "codes": 64, "rank": 4, "temperature": 1.0, "relative": False}
            rows.append({**case, "repeat": repeat, "seconds": seconds * (1, 1, 9)[repeat], "peak_mb": megabytes})
    rows.append({**rows[-1], "part": "schedule", "writing": "streaming", "tau": 0.1, "skipped": 0.9, "repeat": 0})
    summary = benchmark.summary(rows)
    ours = next(row for row in summary if row["writing"] == "streaming" and row["part"] == "sizes")
    assert ours["repeats"] == 3 and ours["vectors"] == 4096  # which older rows do not tell
    assert (ours["seconds"], ours["time_of_published"], ours["memory_of_published"]) == (2.0, 0.25, 0.05)
    assert ours["time_of_nearest"] == 2.0 and ours["time_of_product"] == 4.0
    scheduled = next(row for row in summary if row["part"] == "schedule")
    assert scheduled["time_of_product"] == 9.0 and "time_of_published" not in scheduled
    draw({"device": "a test", "summary": summary}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    more = benchmark.summary([*rows, *({**row, "vectors": 64, "seconds": row["seconds"] / 8} for row in rows)])
    found = [row for row in more if row["writing"] == "streaming" and row["part"] == "sizes"]
    assert [(row["vectors"], row["seconds"], row["time_of_product"]) for row in found] == [(4096, 2.0, 4.0), (64, 0.25, 4.0)]
    draw({"device": "a test", "summary": more}, tmp_path / "taller.png")
    assert image_size(tmp_path / "taller.png")[1] > image_size(tmp_path / "plot.png")[1]


def image_size(path):
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize("path", sorted((PROJECT / "results").glob("soft_assignment_*.json")), ids=lambda path: path.stem)
def test_committed_results_are_read(path, tmp_path):
    result = read_json(path)
    wanted = {benchmark.key({**asdict(case), "repeat": 0}) for case in benchmark.cases("cpu", benchmark.CODES)}
    assert {benchmark.key(row) for row in result["rows"] if row["repeat"] == 0} <= wanted, "measured again though it is there"
    draw(result | {"summary": benchmark.summary(result["rows"])}, tmp_path / "plot.png")


def test_n_goes_with_k():
    def pairs(*arguments):
        return {(case.vectors, case.codes) for case in benchmark.cases(*arguments) if case.part == "sizes"}

    on_cpu = {(4096, codes) for codes in benchmark.CODES} | {(1024, 16384), (16384, 16384)}
    assert pairs("cpu", benchmark.CODES) == on_cpu
    assert pairs("cuda", benchmark.CODES) == on_cpu | {(32768, 1 << 20)}
    assert pairs("cpu", [64], [1, 2]) == {(1, 64), (2, 64)} and pairs("cpu", [64]) == {(4096, 64)}
    published = [case for case in benchmark.cases("cuda", benchmark.CODES) if case.writing == "published"]
    assert max(case.vectors * case.codes for case in published) == benchmark.MOST_ENTRIES["published"]
