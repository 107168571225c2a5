"""A global batch split over two processes gives what one process gives: losses, gradients, statistics."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import distributed as dist

from stage1_tokenizer.quantizers import QUANTIZERS, build_quantizer, on_grid, soft_assignment, vqwae
from stage1_tokenizer.quantizers.global_batch import from_first_process, gather, global_mean, global_sum

CONFIGS = Path(__file__).parents[3] / "configs" / "quantizer"
LOCAL = {"lgq_paper"}  # publishes a usage term and a start of each process's own vectors
STREAMED = {"lgq, streamed", "vqwae, streamed"}  # as if they were too large to be held: other code than for these sizes
NAMES = sorted((set(QUANTIZERS) - LOCAL) | STREAMED)
STEPS = 3


def run(name: str, rank: int, processes: int) -> dict[str, torch.Tensor]:
    """A start from data and three steps on this process's share, in float64: everything that must agree."""
    torch.manual_seed(0)
    name, _, streamed = name.partition(", ")
    soft_assignment.SMALL, vqwae.DENSE = (0, 0) if streamed else (1 << 18, 1 << 20)
    quantizer = on_grid(build_quantizer(**yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))).double()
    draw = torch.Generator().manual_seed(1)
    shape = (16, 4, 4)
    batches = [torch.randn(*shape, quantizer.input_dim, generator=draw, dtype=torch.float64) for _ in range(STEPS)]
    cotangent = torch.randn(*shape, quantizer.dim, generator=draw, dtype=torch.float64)

    def share(batch: torch.Tensor) -> torch.Tensor:
        return batch.chunk(processes)[rank].clone()

    quantizer.initialize(share(batches[0]))
    results = {}
    for step, batch in enumerate(batches):
        quantizer.anneal(step / STEPS)
        quantizer.zero_grad()
        z = share(batch).requires_grad_()
        out = quantizer(z)
        ((out.codes * share(cotangent)).mean() + sum(out.losses.values())).backward()
        assert z.grad is not None
        results |= {f"{step} loss {key}": global_sum(loss) / processes for key, loss in out.losses.items()}
        results[f"{step} indices"] = gather(out.indices)
        results[f"{step} gradient of z"] = gather(z.grad) / processes
        for key, parameter in quantizer.named_parameters():
            if parameter.grad is not None:
                parameter.grad = global_sum(parameter.grad) / processes
                results[f"{step} gradient of {key}"] = parameter.grad.clone()
                parameter.data.sub_(parameter.grad)
    quantizer.anneal(1.0)
    return results | {f"state {key}": value for key, value in quantizer.state_dict().items()}


def worker(rank: int, port: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo")
    parts = torch.arange(3.0) + 10 * rank
    shared = {"sum": global_sum(parts), "mean": global_mean(parts), "first": from_first_process(parts)}
    results = {name: run(name, rank, 2) for name in NAMES}
    torch.save(results | {"shared": shared | {"gather": gather(parts)}}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(port, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    root, at = str(Path(__file__).parents[3]), str(port())
    command = [[sys.executable, __file__, str(rank), at, str(folder)] for rank in range(2)]
    started = [subprocess.Popen(line, cwd=root, env=os.environ | {"PYTHONPATH": root}) for line in command]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_are_one(two, name, monkeypatch):
    monkeypatch.setattr(soft_assignment, "SMALL", soft_assignment.SMALL)
    monkeypatch.setattr(vqwae, "DENSE", vqwae.DENSE)
    alone = run(name, 0, 1)
    for results in two:
        assert results[name].keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(results[name][key], value, rtol=1e-9, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", NAMES)
def test_processes_hold_the_same_state_bit_for_bit(two, name):
    first, second = (results[name] for results in two)
    assert all(torch.equal(value, second[key]) for key, value in first.items() if key.startswith("state"))


def test_the_parts(two):
    for results in two:
        shared = results["shared"]
        assert shared["sum"].tolist() == [10, 12, 14]
        assert shared["mean"].tolist() == [5, 6, 7]
        assert shared["first"].tolist() == [0, 1, 2]
        assert shared["gather"].tolist() == [0, 1, 2, 10, 11, 12]


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2], sys.argv[3])
