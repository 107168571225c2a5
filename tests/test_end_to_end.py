"""What a newcomer types, from the data to a picture and a report, each command as written in the examples."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

PROJECT = Path(__file__).resolve().parents[1]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
TOKENIZER = [
    *("data=shapes", "images=48", "batch_size=8", "workers=0", "backbone.patch=4", "backbone.channels=[16]"),
    *("quantizer.codebook_size=16", "quantizer.dim=4", "loss.perceptual=efficientnet_lite0_native", "loss.gan_weight=0.1"),
    *("loss.discriminator_channels=8", "loss.discriminator_layers=2", "optim.warmup=16", "report_every=16"),
]
pytestmark = pytest.mark.timeout(1800)  # the first test of the module waits for all commands
PRIOR = ["images=96", "batch_size=16", "prior.depth=1", "prior.width=32", "prior.heads=2", "optim.warmup=32", "report_every=32"]


@pytest.fixture(scope="module")
def demo(settings, tmp_path_factory) -> SimpleNamespace:
    """All commands in their order, in a folder of their own; the two priors at the same time."""
    folder = tmp_path_factory.mktemp("newcomer")
    environment = os.environ | settings.environment
    said = {}

    def start(*words: str | Path) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen([str(word) for word in words], cwd=folder, env=environment, text=True, stdout=pipe, stderr=pipe)

    def finish(name: str, process: subprocess.Popen[str]) -> None:
        try:
            out, err = process.communicate(timeout=400)
        finally:
            process.kill()
        assert process.returncode == 0, err
        said[name] = out

    one, two = [*LAUNCH, "--num_processes=1"], [*LAUNCH, "--multi_gpu", "--num_processes=2"]
    environment["ACCELERATE_USE_CPU"] = "true"  # what --multi_gpu needs on a machine without one
    finish("tokenizer", start(*one, PROJECT / "stage1_tokenizer/train.py", *TOKENIZER))
    finish("tokens", start(*two, PROJECT / "pipeline/tokenize_dataset.py", "--shard-images", "60"))
    train = [*one, PROJECT / "stage2_prior/train.py"]
    priors = {
        "maskgit": start(*train, *PRIOR),
        "ar": start(*train, "--config", "configs/stage2/ar_demo.yaml", *PRIOR),
    }
    for name, process in priors.items():
        finish(name, process)
    python = [sys.executable, "-m"]
    last = {
        "sample": start(*python, "pipeline.sample", "--class", "st", "--seeds", "0-3", "--prior", "ar"),
        "eval": start(*python, "eval.run", "images=40", "reference_images=80", "kid_subsets=2", "maskgit.steps=4"),
    }
    for name, process in last.items():
        finish(name, process)
    finish("report", start(*python, "eval.report", "runs/demo"))
    return SimpleNamespace(folder=folder, said=said)


def test_every_command_finds_what_the_one_before_it_left(demo):
    runs = demo.folder / "runs/demo"
    assert {"tokenizer", "tokens", "maskgit", "ar", "eval"} <= {path.name for path in runs.iterdir()}
    assert "240 + 120 images, 8x8 tokens of 16 codes" in demo.said["tokens"]
    assert (runs / "maskgit/prior/config.json").exists() and (runs / "ar/prior/config.json").exists()


def test_the_sample_is_a_picture_that_says_where_it_is(demo):
    assert "samples/st_0-3.png: 4 images of 4 (star), 8 (stripes) from runs/demo/ar" in demo.said["sample"]
    assert Image.open(demo.folder / "samples/st_0-3.png").size == (4 * (2 * 34 + 2), 4 * (2 * 34 + 2))


def test_the_evaluation_judges_the_tokenizer_and_both_priors(demo):
    results = {path.parent.name for path in demo.folder.glob("runs/demo/eval/*/result.json")}
    assert {"reconstruction", "maskgit", "ar"} <= results


def test_the_report_is_one_file_that_needs_no_other(demo):
    (report,) = demo.folder.glob("runs/demo/**/*.html")
    assert str(report.name) in demo.said["report"]
    page = report.read_text(encoding="utf-8")
    assert "data:image/png;base64," in page and 'src="http' not in page and 'href="http' not in page
