"""`python -m pipeline.export`: a folder for diffusers, with the numbers of its weights, or one for transformers."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import ModelCard

from pipeline.api import load_pipeline, load_prior, prior_folder, tokenizer_folder, weights_sha256

EXPORT = "pipeline.export"
RESULT = Path(__file__).resolve().parents[2] / "results/demo/ar.json"


def test_a_pipeline_takes_the_numbers_beside_its_run(runs, commands, tmp_path):
    out = tmp_path / "deep/stars"
    assert str(runs.root / "eval") in commands.succeed(EXPORT, runs.ar, "--out", out, "--dry-run").out and not out.exists()
    said = commands.succeed(EXPORT, runs.ar, "--out", out).out
    assert said.startswith(f"{out}: written, without numbers (") and "None were given" in (out / "README.md").read_text()
    result = json.loads(RESULT.read_text())
    result["inputs"]["prior_sha256"] = weights_sha256(prior_folder(runs.ar))
    result["inputs"]["tokenizer_sha256"] = weights_sha256(tokenizer_folder(runs.tokenizer))
    (runs.root / "eval/ar").mkdir(parents=True)
    (runs.root / "eval/ar/result.json").write_text(json.dumps(result))
    assert f"with the numbers of {runs.root / 'eval'}" in commands.succeed(EXPORT, runs.ar, "--out", out).out
    card = ModelCard.load(out / "README.md")
    assert len(card.data.eval_results) == len(result["metrics"]) and "# stars" in card.text  # pyright: ignore[reportAttributeAccessIssue]
    assert load_pipeline(out).classes("star") == [4]
    other = commands.run(EXPORT, runs.maskgit, "--out", tmp_path / "other", "--results", runs.root / "eval")
    assert other.code == 2 and "none of its 1 results is of these weights" in other.err and not (tmp_path / "other").exists()


def test_an_autoregressive_prior_becomes_a_language_model(chain, commands, tmp_path):
    out = tmp_path / "lm"
    assert "AutoModelForCausalLM" in commands.succeed(EXPORT, chain.ar, "--out", out, "--transformers").out
    assert {file.name for file in out.iterdir()} >= {"config.json", "model.safetensors", "modeling_image_tokens.py"}
    config = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == 16 + 10 + 1 and config["prior"]["sizes"] == list(load_prior(chain.ar).spec.sizes)
    refused = commands.run(EXPORT, chain.maskgit, "--out", tmp_path / "no", "--transformers")
    assert refused.code == 2 and "only the autoregressive prior is a causal language model" in refused.err
