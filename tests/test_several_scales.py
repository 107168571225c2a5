"""The whole chain where an image has several scales of tokens and every token several indices: train, encode, sample, judge."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from eval.results import find_results
from pipeline.api import ImageGenerator, TokenStore, load_data, load_pipeline, load_tokenizer
from pipeline.core.data.images import OrderedImages, ordered_batches
from pipeline.core.errors import UserError
from pipeline.editing import encode, inpaint, vary
from stage2_prior.priors import PRIORS

QUANTIZER = [
    *("quantizer=multi_scale", "quantizer.sides=[1, 2, 4]"),
    "quantizer.base={name: residual, depth: 2, base: {name: vq_ema, dim: 4, codebook_size: 12}}",
]
SHORT = ["images=64", "batch_size=8", "report_every=32", "snapshot_every=48"]


@pytest.fixture(scope="module")
def several(commands, settings, tmp_path_factory) -> SimpleNamespace:
    """The finished runs, in a folder of their own."""
    root = tmp_path_factory.mktemp("several")
    runs = SimpleNamespace(root=root, **{name: root / name for name in ("tokenizer", "tokens", *PRIORS, "eval")})
    commands.succeed("stage1_tokenizer.train", f"run={runs.tokenizer}", *settings.stage1, *QUANTIZER, *SHORT)
    commands.succeed("pipeline.tokenize_dataset", "--tokenizer", runs.tokenizer, "--shard-images", 50)
    priors = {name: getattr(runs, name) for name in PRIORS}
    for name, run in priors.items():
        commands.succeed("stage2_prior.train", f"run={run}", f"tokens={runs.tokens}", f"prior={name}", *settings.stage2, *SHORT)
    where = ["--tokenizer", runs.tokenizer, "--out", runs.eval, "--priors", *priors.values()]
    commands.succeed("eval.run", "images=40", "reference_images=40", "kid_subsets=2", "maskgit.steps=3", *where)
    return runs


def test_the_store_holds_what_the_tokenizer_says(several):
    store = TokenStore(several.tokens)
    assert store.spec.sizes == (12, 12) and store.spec.scales == ((1, 1), (2, 2), (4, 4))
    data = load_data("shapes", image_size=16, train_per_class=12, validation_per_class=6)
    (batch,) = ordered_batches(OrderedImages(data.validation, 16), 60)
    tokens, labels = store.batch("validation", list(range(60)))
    assert tokens.shape == (60, 21, 2) and torch.equal(labels, batch["label"])
    assert torch.equal(load_tokenizer(several.tokenizer).encode(batch["image"].float() / 127.5 - 1), tokens)


@pytest.mark.parametrize("prior", PRIORS)
def test_samples_are_pictures_and_repeat_with_their_seeds(several, commands, prior, tmp_path):
    run = getattr(several, prior)
    commands.succeed("pipeline.sample", "--class", 3, "--seeds", "0-3", "--pipeline", run, "--out", tmp_path / "four.png")
    assert Image.open(tmp_path / "four.png").size[0] >= 2 * 16
    model = load_pipeline(run)
    tokens = model.prior.sample([3, 1, 3], model.options(), [0, 1, 2]).tokens
    assert tokens.shape == (3, 21, 2) and tokens.min() >= 0 and tokens.max() < 12
    assert torch.equal(model.prior.sample([3], model.options(), [2]).tokens, tokens[2:])


@pytest.mark.parametrize("prior", PRIORS)
def test_edits_keep_the_pixels_around_a_hole_and_fill_it(several, prior):
    model = load_pipeline(getattr(several, prior))
    pictures = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(3, 16, 16, dtype=torch.bool)
    masks[0, 5:9, 10:] = masks[2, :4] = True
    filled = inpaint(model, pictures, masks, [4, 0, 9], [5, 6, 7], model.options())
    assert torch.where(masks[:, None], 0, filled).equal(torch.where(masks[:, None], 0, pictures))
    assert filled[1].equal(pictures[1]) and (filled != pictures)[0, :, 5:9, 10:].float().mean() > 0.9
    other = torch.where(masks[:, None], 255 - pictures, pictures)  # what lies in the hole is not seen
    assert inpaint(model, other, masks, [4, 0, 9], [5, 6, 7], model.options()).equal(filled)
    assert inpaint(model, pictures[2:], masks[2:], [9], [7], model.options()).equal(filled[2:])
    assert vary(model, pictures, 0.0, [4, 0, 9], [5, 6, 7], model.options()).equal(model.decode(encode(model, pictures)))


def test_a_saved_next_scale_pipeline_makes_the_same_images(several, tmp_path):
    generator = load_pipeline(several.var)
    generator.save_pretrained(tmp_path)
    arguments: dict[str, Any] = {"class_labels": [3, 1], "seeds": [4, 5], "guidance_scale": 2.0, "output_type": "latent"}
    (tokens,) = generator(**arguments, return_dict=False)
    for again in (load_pipeline(tmp_path), ImageGenerator.from_pretrained(tmp_path)):
        (repeated,) = again(**arguments, return_dict=False)  # pyright: ignore[reportCallIssue]
        assert torch.equal(repeated, tokens)
    with pytest.raises(UserError, match="steps: NextScaleSampling has no such option"):
        generator([1], num_inference_steps=4)


def test_tokens_of_one_scale_end_the_training_of_a_next_scale_prior_in_one_line(chain, commands, settings, tmp_path):
    result = commands.run(
        "stage2_prior.train", f"run={tmp_path / 'x'}", f"tokens={chain.tokens}", "prior=var", *settings.stage2
    )
    assert result.code == 2
    (line,) = result.error_lines
    assert "several scales" in line and "quantizer=multi_scale" in line


def test_the_evaluation_counts_all_scales_and_indices(several):
    results = {path.parent.name: result for path, result in find_results(several.eval).items()}
    assert {"reconstruction", *PRIORS} <= set(results)
    reconstruction = results["reconstruction"].metrics
    per_token, per_image = (reconstruction[f"bits_per_{part}"].value for part in ("token", "image"))
    assert per_image == pytest.approx(21 * per_token) and 0 < per_token <= 2 * math.log2(12)
    for prior in PRIORS:
        bits = results[prior].metrics["prior_bits"].value  # label smoothing costs a hundredth beyond the uniform one
        assert 0 < bits < 1.05 * 2 * math.log2(12)
        assert (several.eval / prior / "samples.png").exists()
