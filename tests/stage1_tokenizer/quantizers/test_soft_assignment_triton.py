"""The Triton kernels: right in Triton's interpreter, and accepted by its compiler for two generations of GPUs."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("triton") is None:
    pytest.skip("there is no Triton for this platform", allow_module_level=True)

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stage1_tokenizer.quantizers.assignment import kernels

PROJECT = Path(__file__).parents[3]
KERNELS = ["forward_rows", "forward_columns", "backward_rows", "backward_columns"]


def run_as_process(environment):
    """soft_assignment_kernels.py's tests, all of which must have run and passed."""
    file = Path(__file__).with_name("soft_assignment_kernels.py")
    command = [sys.executable, "-m", "pytest", str(file), "-v", "-p", "no:cacheprovider", "-W", "ignore"]
    run = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout.splitlines()[-1]


def test_in_the_interpreter_they_are_the_dense_assignment():
    run_as_process(os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_they_are_the_dense_assignment():
    run_as_process({name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"})


SHIPPED = [(kernel, 64, block) for kernel in KERNELS for block in kernels.BLOCKS]
SHIPPED += [(kernel, 256, kernels.BLOCKS[-1]) for kernel in KERNELS]


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("kernel", KERNELS)
def test_they_compile_to_machine_code(kernel, architecture, tmp_path, monkeypatch):
    """Without a GPU: the compiler and the assembler come with Triton. That the result runs is not shown."""
    compiled(kernel, 16, (16, 16, 4, 2), architecture, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "channels", "block"), SHIPPED)
def test_the_shipped_blocks_compile_to_machine_code(kernel, channels, block, tmp_path, monkeypatch):
    compiled(kernel, channels, block, 90, tmp_path, monkeypatch)


def compiled(kernel, channels, block, architecture, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    vectors, codes, warps, stages = block
    constants = {"SLOPED": True, "C": channels, "V": channels, "PRECISION": "tf32x3", "N": vectors, "K": codes}
    special = {"to_index": "*i64", "to_visited": "*i32", "margin": "fp32"}
    special |= dict.fromkeys(("n", "k", "channels", "width"), "i32") | dict.fromkeys(constants, "constexpr")
    function = getattr(kernels, kernel).fn
    signature = {name: special.get(name, "*fp32") for name in function.arg_names}
    source = ASTSource(function, signature, constexprs=constants)
    options = {"num_warps": warps, "num_stages": stages}
    binary = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    assert len(binary.asm["cubin"]) > 1000
