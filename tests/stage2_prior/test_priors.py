"""What every prior in the table promises: loss, bits, samples, files."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pipeline.core.errors import UserError
from stage2_prior.maskgit import MaskGITPrior, order_agnostic_bits, smallest
from stage2_prior.priors import PRIORS, build_prior, open_prior
from stage2_prior.samplers import sample_autoregressive
from stage2_prior.sampling import UNKNOWN, MaskGITSampling
from stage2_prior.transformer import take

NAMES = list(PRIORS)


def rows(noise, start, end):
    return {key: value[start:end] for key, value in noise.items()}


def every_logit(logits):
    """Whatever positions there are, one tensor per index."""
    n = len(logits.features)
    return [logits(j, torch.arange(n), torch.empty(n, j, dtype=torch.long)) for j in range(len(logits.sizes))]


def draw_tokens(prior, b, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(size, (b, prior.spec.t), generator=generator) for size in prior.spec.sizes], dim=-1)


@pytest.mark.parametrize("sizes", [[11], [7, 5]])
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_do_not_depend_on_the_split_of_the_batch(make_prior, name, sizes):
    prior = make_prior(name, sizes=sizes, dropout=0.2).train()
    tokens, labels = draw_tokens(prior, 8), torch.arange(8) % 5
    noise = prior.draw_noise(8, torch.Generator().manual_seed(3))
    count = prior.loss_count(noise)

    def step(size):
        prior.zero_grad()
        parts = [(start, start + size) for start in range(0, 8, size)]
        losses = [prior(tokens[a:b], labels[a:b], rows(noise, a, b)) / count for a, b in parts]
        for loss in losses:
            loss.backward()
        return sum(losses), [parameter.grad.clone() for parameter in prior.parameters()]

    loss, gradients = step(8)
    for size in (1, 4):
        assert count == sum(prior.loss_count(rows(noise, start, start + size)) for start in range(0, 8, size))
        split_loss, split_gradients = step(size)
        torch.testing.assert_close(split_loss, loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(split_gradients, gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_noise_repeats_with_its_generator_and_leaves_the_global_one_alone(make_prior, name):
    prior = make_prior(name)
    state = torch.get_rng_state()
    first, again, other = (prior.draw_noise(16, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(state)
    for key in first:
        assert len(first[key]) == 16 and first[key].equal(again[key]) and not first[key].equal(other[key])


def test_maskgit_loss_is_the_smoothed_cross_entropy_of_the_masked_tokens(make_prior):
    prior = make_prior("maskgit", sizes=[7, 5], label_smoothing=0.1, class_dropout=0.5, chained=False)
    tokens, labels = draw_tokens(prior, 6), torch.arange(6) % 5
    noise = prior.draw_noise(6, torch.Generator().manual_seed(1))
    masked = smallest(noise["priority"], noise["count"])
    assert masked.sum(1).equal(noise["count"]) and prior.loss_count(noise) == 2 * masked.sum().item()
    dropped = torch.where(noise["class_drop"] < 0.5, 5, labels)
    assert 0 < (dropped == 5).sum() < 6
    logits = every_logit(prior.codes.logits(prior._features(tokens, masked, dropped)[masked]))
    expected = sum(
        F.cross_entropy(each, tokens[..., j][masked], label_smoothing=0.1, reduction="sum") for j, each in enumerate(logits)
    )
    torch.testing.assert_close(prior(tokens, labels, noise), expected)
    # what is masked is not seen
    other = torch.where(masked[..., None], draw_tokens(prior, 6, seed=1), tokens)
    assert not other.equal(tokens)
    for a, b in zip(logits, every_logit(prior.codes.logits(prior._features(other, masked, dropped)[masked])), strict=True):
        assert a.equal(b)


def test_visible_targets_take_no_part_in_the_maskgit_loss(make_prior):
    prior = make_prior("maskgit", label_smoothing=0.0)
    noise = prior.draw_noise(4, torch.Generator().manual_seed(0))
    masked = smallest(noise["priority"], noise["count"])
    tokens = draw_tokens(prior, 4).masked_fill(~masked[..., None], 10)  # code 10 is visible only
    tokens[masked] = tokens[masked].clamp(max=9)
    prior.codes.tables[0].data[10] = prior.mask.data
    with torch.no_grad():
        prior.codes.biases[0][10] = -200.0  # as a target it would cost 200 nats
    assert prior(tokens, torch.arange(4), noise) / prior.loss_count(noise) < 50


def test_autoregressive_loss_is_the_cross_entropy_of_all_tokens(make_prior):
    prior = make_prior("ar", label_smoothing=0.1, class_dropout=0.0)
    tokens, labels = draw_tokens(prior, 3), torch.arange(3)
    noise = prior.draw_noise(3, torch.Generator().manual_seed(0))
    (logits,) = every_logit(prior.codes.logits(prior._features(tokens, labels)))
    expected = F.cross_entropy(logits, tokens.flatten(), label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(prior(tokens, labels, noise), expected)
    assert prior.loss_count(noise) == 48
    bits = F.cross_entropy(logits, tokens.flatten(), reduction="none").view(3, 16).sum(1) / math.log(2)
    torch.testing.assert_close(prior.validation_bits(tokens, labels, noise), bits)


@pytest.mark.parametrize("name", NAMES)
def test_the_null_class_is_what_a_dropped_label_becomes(make_prior, name):
    dropping, keeping = make_prior(name, class_dropout=1.0), make_prior(name, class_dropout=0.0)
    tokens, noise = draw_tokens(keeping, 4), keeping.draw_noise(4, torch.Generator().manual_seed(0))
    null = keeping(tokens, torch.full((4,), 5), noise)
    assert dropping(tokens, torch.arange(4), noise).equal(null)
    assert not keeping(tokens, torch.arange(4), noise).equal(null)


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_prior_is_nearly_uniform_and_a_uniform_one_costs_its_nominal_bits(make_prior, name):
    prior = make_prior(name, sizes=[64, 16], awake=False)
    tokens, labels = draw_tokens(prior, 64), torch.arange(64) % 5
    noise = prior.draw_noise(64, torch.Generator().manual_seed(0))
    loss = prior(tokens, labels, noise) / prior.loss_count(noise)
    assert loss.item() == pytest.approx((math.log(64) + math.log(16)) / 2, rel=0.02)
    for table in prior.codes.tables:
        torch.nn.init.zeros_(table)
    bits = prior.validation_bits(tokens, labels, noise)
    torch.testing.assert_close(bits, torch.full((64,), prior.spec.bits_per_image))


@pytest.mark.parametrize("name", NAMES)
def test_validation_knows_no_dropout_and_no_smoothing(make_prior, name):
    plain = make_prior(name, label_smoothing=0.0)
    noisy = make_prior(name, label_smoothing=0.3, dropout=0.5, class_dropout=1.0).train()
    tokens, noise = draw_tokens(plain, 4), plain.draw_noise(4, torch.Generator().manual_seed(0))
    assert plain.validation_bits(tokens, torch.arange(4), noise).equal(noisy.validation_bits(tokens, torch.arange(4), noise))


@pytest.mark.parametrize("name", NAMES)
def test_dropout_acts_in_training_mode_only(make_prior, name):
    plain, dropping = make_prior(name), make_prior(name, dropout=0.5)
    tokens, noise = draw_tokens(plain, 4), plain.draw_noise(4, torch.Generator().manual_seed(0))
    loss = plain(tokens, torch.arange(4), noise)
    assert dropping.eval()(tokens, torch.arange(4), noise).equal(loss)
    assert not dropping.train()(tokens, torch.arange(4), noise).equal(loss)


def test_the_bound_of_a_perfect_model_is_the_entropy(toy):
    entropy = -(toy.probabilities * toy.probabilities.log2()).sum()
    bound = 0.0
    for n in range(1, toy.t + 1):
        subsets = list(itertools.combinations(range(toy.t), n))
        for subset in subsets:
            masked = torch.zeros(len(toy.states), toy.t, dtype=torch.bool)
            masked[:, list(subset)] = True
            log_probs = toy.conditionals(toy.states, masked)
            nats = -log_probs.gather(-1, toy.states[..., None]).squeeze(-1)[masked]
            bits = order_agnostic_bits(nats, masked)
            bound += (toy.probabilities * bits).sum() / len(subsets) / toy.t
    assert float(bound) == pytest.approx(float(entropy), rel=1e-6)


def test_validation_masks_every_count_equally_often(make_prior, monkeypatch):
    prior = make_prior("maskgit")
    counts = []
    features = prior._features
    monkeypatch.setattr(
        prior, "_features", lambda tokens, masked, labels: (counts.append(masked.sum(1)), features(tokens, masked, labels))[1]
    )
    prior.validation_bits(draw_tokens(prior, 64), torch.arange(64) % 5, prior.draw_noise(64, torch.Generator().manual_seed(0)))
    assert counts[0].bincount(minlength=17)[1:].tolist() == [4] * 16


@pytest.mark.parametrize("sizes", [[11], [7, 5]])
@pytest.mark.parametrize("name", NAMES)
def test_samples_are_the_same_in_a_batch_of_any_size(make_prior, name, sizes):
    prior = make_prior(name, sizes=sizes, num_classes=5)
    labels, seeds = [0, 1, 2, 3, 4, 1, 0, 1], [3, 4, 5, 6, 7, 8, 9, 4]
    given = torch.full((8, 16, len(sizes)), UNKNOWN)
    given[1, 2:7] = 3
    variants = [
        (None, {"guidance_scale": 2.0, "guidance_interval": (0.3, 0.7), "top_k": 4, "temperature": 0.9}),
        (given, {"guidance_scale": 2.0, "guidance_schedule": "linear"}),
    ]
    orders = [{"steps": 6, "order": order} for order in ("confidence", "halton")] if name == "maskgit" else [{}]
    for (known, variant), order in itertools.product(variants, orders):
        options = prior.options_type(**variant, **order)
        together = prior.sample(labels, options, seeds, known).tokens
        for size in (1, 3):
            parts = [slice(start, start + size) for start in range(0, 8, size)]
            split = [prior.sample(labels[p], options, seeds[p], None if known is None else known[p]).tokens for p in parts]
            assert torch.cat(split).equal(together)
    assert together[1, 2:7].eq(3).all()
    assert not together[0].equal(together[6])  # the same class, another seed


@pytest.mark.parametrize("name", NAMES)
def test_sampling_leaves_mode_and_generators_alone_and_gives_codes_only(make_prior, name):
    prior = make_prior(name, sizes=[7, 5], dropout=0.5).train()
    state = torch.get_rng_state()
    samples = prior.sample(torch.arange(5), prior.options_type(), range(5), trace=True)
    assert prior.training and torch.get_rng_state().equal(state)
    assert samples.tokens.dtype == torch.int64 and samples.tokens.shape == (5, 16, 2)
    assert (samples.tokens >= 0).all() and (samples.tokens < torch.tensor([7, 5])).all()
    assert samples.trace[-1].equal(samples.tokens) and len(samples.trace) > 1
    assert prior.eval().sample(torch.arange(5), prior.options_type(), range(5)).tokens.equal(samples.tokens)
    assert prior.sample(torch.arange(5), prior.options_type(), range(5)).trace == []


def test_cached_sampling_equals_uncached(make_prior):
    prior = make_prior("ar", sizes=[7, 5])
    labels = torch.tensor([0, 3, 4])

    def uncached(tokens, start, m, branches):
        features = prior._features(tokens.repeat(len(branches), 1, 1), prior._branch_labels(labels, branches))
        at = (torch.tensor(start)[:, None] + torch.arange(m)).clamp(max=15).repeat(len(branches), 1)
        return prior.codes.logits(take(features, at))

    for options in (
        {"temperature": 0.0, "guidance_scale": 2.0},
        {"guidance_scale": 3.0, "guidance_schedule": "linear"},
        {"guidance_scale": 3.0, "guidance_interval": (0.2, 0.6)},
    ):
        options = prior.options_type(**options)
        plain = sample_autoregressive(uncached, torch.full((3, 16, 2), UNKNOWN), options, [1, 2, 3])
        assert prior.sample(labels, options, [1, 2, 3]).tokens.equal(plain.tokens)


def test_samples_of_an_untouched_batch_of_one_class_equal_those_of_many(make_prior):
    """The first step serves all samples of a class in one pass: that must not be seen in the result."""
    prior = make_prior("maskgit")
    options = MaskGITSampling(steps=3, guidance_scale=2.0)
    mixed = prior.sample([0, 0, 1, 1], options, [1, 2, 3, 4]).tokens
    assert prior.sample([0, 0], options, [1, 2]).tokens.equal(mixed[:2])
    assert prior.sample([1, 1], options, [3, 4]).tokens.equal(mixed[2:])


@pytest.mark.parametrize("name", NAMES)
def test_eight_grids_are_learnt_by_heart_and_come_back(make_prior, name):
    prior = make_prior(name, awake=False, sizes=[32], num_classes=8, width=64).train()
    tokens, labels = draw_tokens(prior, 8), torch.arange(8)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(120):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1.0, 2 - step / 60)
        noise = prior.draw_noise(16, generator)
        loss = prior(tokens.repeat(2, 1, 1), labels.repeat(2), noise) / prior.loss_count(noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    variants: list[dict[str, Any]] = [{"temperature": 0.0}, {"guidance_scale": 3.0, "temperature": 0.5}]
    for options in variants:
        if name == "maskgit":
            options = options | {"steps": 16, "order": "halton"}
        assert prior.sample(labels, prior.options_type(**options), range(8)).tokens.eq(tokens).float().mean() > 0.99
    noise = prior.draw_noise(64, generator)
    assert (prior.validation_bits(tokens.repeat(8, 1, 1), labels.repeat(8), noise).mean() / 16) < 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_keeps_given_tokens(make_prior, name, dtype):
    prior = make_prior(name).to(dtype)
    given = torch.full((4, 16, 1), UNKNOWN)
    given[:, ::3] = draw_tokens(prior, 4)[:, ::3]
    options = prior.options_type(guidance_scale=3.0)
    tokens = prior.sample([0, 1, 2, 3], options, range(4), given).tokens
    assert tokens[:, ::3].equal(given[:, ::3]) and (tokens >= 0).all() and (tokens < 11).all()


@pytest.mark.parametrize("name", NAMES)
def test_bf16_autocast_trains_with_a_loss_near_that_of_float32(make_prior, name):
    prior = make_prior(name)
    tokens, noise = draw_tokens(prior, 4), prior.draw_noise(4, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        loss = prior(tokens, torch.arange(4), noise)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, prior(tokens, torch.arange(4), noise), rtol=0.05, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_it_is_the_same(make_prior, name, tmp_path):
    prior = make_prior(name, sizes=[7, 5], scales=[[1, 1], [4, 4]], label_smoothing=0.05)
    prior.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["sizes"] == [7, 5] and config["scales"] == [[1, 1], [4, 4]] and config["label_smoothing"] == 0.05
    for loaded in (open_prior(tmp_path), PRIORS[name].from_pretrained(tmp_path)):
        assert type(loaded) is PRIORS[name] and loaded.spec == prior.spec and not loaded.training
        assert all(a.equal(b) for a, b in zip(prior.state_dict().values(), loaded.state_dict().values(), strict=True))
        options = prior.options_type(guidance_scale=2.0)
        assert loaded.sample([1, 4], options, [0, 1]).tokens.equal(prior.sample([1, 4], options, [0, 1]).tokens)


def test_what_is_not_a_prior_is_refused_in_one_line(make_prior, tmp_path):
    with pytest.raises(UserError, match=r"config\.json: missing"):
        open_prior(tmp_path)
    make_prior("ar").save_pretrained(tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    weights.write_bytes(b"")
    with pytest.raises(UserError, match=r"safetensors: empty") as caught:
        open_prior(tmp_path)
    assert "\n" not in str(caught.value)
    make_prior("ar").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "MaskGitPrior"}')
    with pytest.raises(UserError, match="did you mean MaskGITPrior"):
        open_prior(tmp_path)


def test_bad_arguments_are_refused_in_one_line(make_prior):
    for options, place in (
        ({"size": "nanno", "depth": None}, "prior.size: nanno; did you mean nano"),
        ({"width": 36, "heads": 4}, "prior.width: 36"),
        ({"schedule": "arcos"}, "prior.schedule: arcos"),
    ):
        with pytest.raises(UserError, match=place):
            make_prior("maskgit", **options)
    with pytest.raises(UserError, match="did you mean maskgit"):
        build_prior("maskgitt")
    with pytest.raises(TypeError):
        make_prior("ar", schedule="arccos")


@pytest.mark.parametrize("name", NAMES)
def test_bad_requests_are_refused_in_one_line(make_prior, name):
    prior = make_prior(name, sizes=[7, 5])
    options, given = prior.options_type(), torch.full((1, 16, 2), UNKNOWN)
    for arguments, place in (
        (([5], options, [0]), "class 5; give a class from 0 to 4"),
        (([-1], options, [0]), "class -1"),
        (([1, 2], options, [0]), "2 labels and 1 seeds"),
        (([1], options, [0], given[:, 1:]), "given tokens of shape"),
        (([1], options, [0], given + 6), "outside"),
        (([1], options, [0], given + torch.tensor([1, 0])), "given in part"),
    ):
        with pytest.raises(UserError, match=place):
            prior.sample(*arguments)


def test_all_priors_are_final_classes_of_one_interface():
    assert {kind.__bases__[0].__name__ for kind in PRIORS.values()} == {"Prior"}
    assert PRIORS["maskgit"] is MaskGITPrior
