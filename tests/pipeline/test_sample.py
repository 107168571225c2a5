from __future__ import annotations

import argparse

import numpy as np
import pytest
from PIL import Image

from pipeline import sample
from pipeline.api import load_pipeline
from pipeline.core.errors import UserError
from pipeline.sampling_arguments import file_name, seed_list
from stage2_prior.priors import PRIORS

SAMPLE = "pipeline.sample"


@pytest.mark.parametrize(
    "text, seeds", [("7", [7]), ("0-3", [0, 1, 2, 3]), ("1,5,8-10", [1, 5, 8, 9, 10]), ("4-4", [4]), (" 1 , 2 - 3 ", [1, 2, 3])]
)
def test_seeds(text, seeds):
    assert seed_list(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "3-1", "1.5", f"{2**63}"])
def test_bad_seeds(text):
    with pytest.raises(UserError, match="--seeds: "):
        seed_list(text)


def test_any_text_makes_a_file_name():
    assert file_name("sahara 24N 8E") == "sahara-24N-8E" and file_name("../x/") == "x" and file_name("?!") == "sample"


def test_the_kinds_of_prior_are_those_of_the_table(monkeypatch):
    added = {}
    monkeypatch.setattr(
        argparse.ArgumentParser, "add_argument", lambda self, name, *rest, **options: added.setdefault(name, options)
    )
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample.main()
    assert set(added["--prior"]["choices"]) == set(PRIORS)


def test_one_image_is_what_the_pipeline_makes(chain, commands, tmp_path):
    out = tmp_path / "deep/picture.png"
    said = commands.succeed(SAMPLE, "--pipeline", chain.ar, "--class", 4, "--seeds", 11, "--out", out).out
    assert said == f"{out}: 1 image of 4 (star) from {chain.ar}\n"
    (expected,) = load_pipeline(chain.ar)(class_labels=[4], seeds=[11]).images  # pyright: ignore[reportAttributeAccessIssue]
    assert Image.open(out).size == (128, 128)
    assert np.array_equal(np.asarray(Image.open(out))[::8, ::8], np.asarray(expected))


def test_a_grid_takes_the_classes_in_turn(chain, commands, tmp_path):
    arguments = ["--class", "st", "--seeds", "0-4", "--steps", 3, "--zoom", 1]
    said = commands.succeed(SAMPLE, *arguments, "--prior", "maskgit", folder=chain.root.parent).out
    out = chain.root.parent / "samples/st_0-4.png"  # below the folder that it was run in, as is the newest run
    assert said == "samples/st_0-4.png: 5 images of 4 (star), 8 (stripes) from runs/maskgit\n"
    grid = np.asarray(Image.open(out))
    assert grid.shape == (2 * 18 + 2, 3 * 18 + 2, 3)
    images = load_pipeline(chain.maskgit)([4, 8, 4, 8, 4], [0, 1, 2, 3, 4], num_inference_steps=3).images  # pyright: ignore[reportAttributeAccessIssue]
    for number, image in enumerate(images):
        row, column = divmod(number, 3)
        cell = grid[2 + 18 * row : 18 * (row + 1), 2 + 18 * column : 18 * (column + 1)]
        assert np.array_equal(cell, np.asarray(image))
    assert (grid[20:, 40:] == 255).all()
