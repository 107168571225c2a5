"""A launcher killed in the middle of a real training, and started again, makes the tokenizer of an uninterrupted one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from eval.benchmark.commands import Commands
from eval.benchmark.config import BenchmarkConfig
from eval.benchmark.contract import Settings
from eval.benchmark.plan import all_jobs
from pipeline.core.config import load_config
from tests_of_launchers import Launchers, until

ID = "tokenizer/fsq-5b-s0"


def weights(run: Path) -> str:
    return hashlib.sha256((run / "tokenizer/diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
