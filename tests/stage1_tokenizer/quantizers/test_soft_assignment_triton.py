"""The Triton kernels: right in Triton's interpreter, and accepted by its compiler for two generations of GPUs."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("triton") is None:
    pytest.skip("there is no Triton for this platform", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stage1_tokenizer.quantizers.assignment import kernels

PROJECT = Path(__file__).parents[3]


def test_in_the_interpreter_they_are_the_dense_assignment():
    file = Path(__file__).with_name("triton_in_interpreter.py")
    command = [sys.executable, "-m", "pytest", str(file), "-v", "-p", "no:cacheprovider", "-W", "ignore"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:]
    assert " passed" in run.stdout


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("kernel", ["forward_rows", "forward_columns", "backward_rows", "backward_columns"])
def test_they_compile_to_machine_code(kernel, architecture, tmp_path, monkeypatch):
    """Without a GPU: the compiler and the assembler come with Triton. That the result runs is not shown."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"SLOPED": True, "C": 16, "V": 16, "PRECISION": "tf32x3", "N": 16, "K": 16}
    special = {"to_index": "*i64", "to_visited": "*i32", "margin": "fp32"}
    special |= dict.fromkeys(("n", "k", "channels", "width"), "i32") | dict.fromkeys(constants, "constexpr")
    function = getattr(kernels, kernel).fn
    signature = {name: special.get(name, "*fp32") for name in function.arg_names}
    source = ASTSource(function, signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": 4})
    assert len(compiled.asm["cubin"]) > 1000
