"""The autoregressive prior in transformers: equal logits, a folder that loads by itself, and `generate`."""

# stubs of transformers
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import GenerationConfig

from pipeline.core.errors import UserError
from stage2_prior.causal_lm import ImageTokensForCausalLM, as_causal_lm, save_transformers
from stage2_prior.sampling import ARSampling

K, T = 11, 16
LOADING = """
import sys
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

folder, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
assert model.config.class_id(2) == 13 and not model.training
ids = torch.arange(16).remainder(11).expand(2, -1)
ids = torch.cat([torch.tensor([[13], [16]]), ids], 1)
greedy = model.generate(ids[:, :1], do_sample=False)
save_file({"logits": model(ids).logits.contiguous(), "greedy": greedy}, out)
model.save_pretrained(folder + "_again")
again = AutoModelForCausalLM.from_pretrained(folder + "_again", trust_remote_code=True)
assert again(ids).logits.equal(model(ids).logits)
"""


@pytest.fixture(params=[{}, {"raster_from": 0.75, "random_until": 0.5}, {"head": "geometric", "code_dims": [3]}], ids=str)
def prior(make_prior, request):
    return make_prior("ar", sizes=[K], **request.param)


def image_ids(b):
    tokens = torch.randint(K, (b, T), generator=torch.Generator().manual_seed(0))
    return torch.cat([K + torch.arange(b)[:, None], tokens], 1)


def test_logits_and_loss_are_the_priors(prior):
    ids, model = image_ids(3), as_causal_lm(prior)
    tokens, labels = ids[:, 1:, None], ids[:, 0] - K
    with torch.no_grad():
        found = model(ids, labels=ids)
        features = prior._features(tokens, labels).flatten(0, 1)
        expected = prior.codes.logits(features)(0, torch.arange(3 * T), torch.empty(3 * T, 0, dtype=torch.long))
        torch.testing.assert_close(found.logits[:, :T, :K], expected.view(3, T, K), rtol=0, atol=1e-5)
        for n in (1, 2, T):  # of a beginning too
            torch.testing.assert_close(model(ids[:, :n]).logits, found.logits[:, :n], rtol=0, atol=1e-5)
        bits = prior.validation_bits(tokens, labels, {})
    assert found.logits.softmax(-1)[..., K:].eq(0).all() and found.logits[:, T, :K].eq(0).all()
    torch.testing.assert_close(found.loss, bits.mean() / T * torch.log(torch.tensor(2.0)))
    nobody = torch.full((3, 1), model.config.class_id(None))
    null = prior._features(tokens, torch.full((3,), 5))[:, 0]
    first = prior.codes.logits(null)(0, torch.arange(3), torch.empty(3, 0, dtype=torch.long))
    torch.testing.assert_close(model(nobody).logits[:, 0, :K], first)


def test_a_folder_loads_by_itself_from_anywhere(make_prior, tmp_path):
    prior = make_prior("ar", sizes=[K])
    save_transformers(prior, tmp_path / "saved")
    (tmp_path / "elsewhere").mkdir()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", LOADING, str(tmp_path / "saved"), str(tmp_path / "out.safetensors")]
    done = subprocess.run(words, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "out.safetensors")
    ids = torch.cat([torch.tensor([[13], [16]]), torch.arange(T).remainder(K).expand(2, -1)], 1)
    torch.testing.assert_close(found["logits"], as_causal_lm(prior)(ids).logits.detach(), rtol=0, atol=1e-5)
    tokens = prior.sample([2], ARSampling(temperature=0.0), [0]).tokens[0, :, 0]
    assert found["greedy"][0].tolist() == [13, *tokens.tolist()]


def test_generate_draws_what_the_prior_draws(make_prior):
    """The first token's distribution over many draws, and beams, which never come below greedy search."""
    prior = make_prior("ar", sizes=[K])
    model = as_causal_lm(prior)
    torch.manual_seed(0)
    prompt = torch.full((4000, 1), model.config.class_id(3))
    once = GenerationConfig(do_sample=True, max_new_tokens=1, min_new_tokens=1, use_cache=False)
    ids = model.generate(prompt, generation_config=once)
    assert ids.shape == (4000, 2) and (ids[:, 1] < K).all()
    chances = model(prompt[:1]).logits[0, 0, :K].softmax(0)
    shares = ids[:, 1].bincount(minlength=K) / 4000
    assert (shares - chances).abs().max() < 5 * (0.25 / 4000) ** 0.5
    whole = model.generate(prompt[:2])
    assert whole.shape == (2, 1 + T) and (whole[:, 1:] < K).all()

    def likelihood(ids):
        scores = model(ids).logits[:, :-1].log_softmax(-1)
        return scores.gather(-1, ids[:, 1:, None]).sum()

    greedy, beams = (model.generate(prompt[:1], do_sample=False, num_beams=beams) for beams in (1, 4))
    assert likelihood(beams) >= likelihood(greedy) - 1e-4


def test_guidance_of_transformers_is_ours(make_prior):
    prior = make_prior("ar", sizes=[K])
    model = as_causal_lm(prior)
    someone, nobody = (torch.tensor([[model.config.class_id(label)]]) for label in (1, None))
    ids = model.generate(someone, do_sample=False, guidance_scale=2.0, negative_prompt_ids=nobody, use_cache=False)
    expected = prior.sample([1], ARSampling(temperature=0.0, guidance_scale=2.0), [0]).tokens[0, :, 0]
    assert ids[0, 1:].tolist() == expected.tolist()


def test_gradients_reach_every_parameter_that_the_prior_trains(make_prior):
    model = as_causal_lm(make_prior("ar", sizes=[K]))
    ids = image_ids(5)
    model(ids, labels=ids).loss.backward()
    # the last position, which nothing follows, is never fed
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert isinstance(model, ImageTokensForCausalLM) and F.relu(model.prior.trunk.classes.grad.abs().sum(1)[:5]).min() > 0


@pytest.mark.parametrize(
    "ids, mask, message",
    [
        ([[3, 1]], None, "give a class"),
        ([[12, 12]], None, "codes below 11"),
        ([[12] + [1] * 17], None, "1 to 17 ids"),
        ([[]], None, "1 to 17 ids"),
        ([[17, 1]], None, "ids from 0 to 16"),
        ([[12, -1]], None, "ids from 0 to 16"),
        ([[-12, 1]], None, "ids from 0 to 16"),
        ([[12, 1]], [[0, 1]], "without padding"),
    ],
)
def test_what_is_no_image_is_refused(make_prior, ids, mask, message):
    model = as_causal_lm(make_prior("ar", sizes=[K]))
    with pytest.raises(UserError, match=message):
        model(torch.tensor(ids).long(), attention_mask=None if mask is None else torch.tensor(mask))


def test_several_indices_are_refused(make_prior):
    with pytest.raises(UserError, match="these tokens have 2"):
        as_causal_lm(make_prior("ar", sizes=[7, 5]))
