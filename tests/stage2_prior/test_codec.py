"""Coding is lossless under every prior and as short as the prior allows."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.core.errors import UserError
from stage2_prior.codec import HELD, CodingModel, CodingOptions, DamagedMessage, MaskGITCoding, decode, encode
from stage2_prior.logits import TensorLogits

SPECS = {
    "one index": {},
    "two digits": {"sizes": [300]},
    "two indices": {"sizes": [7, 300]},
    "independent indices": {"sizes": [2, 2, 2], "chained": False},
    "one code": {"sizes": [1, 5]},
    "several scales": {"scales": [[1, 1], [2, 2], [3, 5]], "sizes": [11, 4]},
    "code vectors": {"head": "geometric", "code_dims": [6]},
}
ORDERS = {
    "ar": ("ar", CodingOptions()),
    "maskgit": ("maskgit", MaskGITCoding(steps=1000)),
    "maskgit in 3 steps": ("maskgit", MaskGITCoding(steps=3)),
    "maskgit in random order": ("maskgit", MaskGITCoding(order="random", steps=5, schedule="linear", seed=3)),
}


def tokens_of(prior, b, seed=0):
    randomness = torch.Generator().manual_seed(seed)
    columns = [torch.randint(size, (b, prior.spec.t), generator=randomness) for size in prior.spec.sizes]
    return torch.stack(columns, dim=-1)


def stepwise(tensors, t, b):
    """A model that gives the same logits "t k" whatever the tokens are, one position per step."""
    return CodingModel(
        torch.arange(t).split(1), lambda tokens, step: TensorLogits([each[step].expand(b, -1) for each in tensors])
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("spec", SPECS)
def test_what_goes_in_comes_out_and_takes_what_the_model_says(make_prior, spec, order):
    name, options = ORDERS[order]
    prior = make_prior(name, **SPECS[spec])
    tokens, labels = tokens_of(prior, 6), torch.tensor([0, 4, 5, 2, 2, 5])  # 5: the null class
    before = tokens.clone()
    message = encode(prior.coding_model(labels, options), tokens)
    assert tokens.equal(before)
    assert torch.equal(decode(prior.coding_model(labels, options), message.stream, 6, prior.spec.d), tokens)
    # it may take less: what a model thinks all but impossible costs 24 bits
    assert 8 * len(message.stream) <= 64 + 1.001 * message.bits.sum()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("b", [0, 1])
def test_no_image_and_one_image(make_prior, order, b):
    name, options = ORDERS[order]
    prior = make_prior(name)
    tokens, labels = tokens_of(prior, b), torch.full((b,), 3)
    message = encode(prior.coding_model(labels, options), tokens)
    assert len(message.bits) == b and bool(message.stream) == bool(b)
    assert torch.equal(decode(prior.coding_model(labels, options), message.stream, b, 1), tokens)


@pytest.mark.parametrize("spec", SPECS)
def test_ar_takes_its_exact_likelihood(make_prior, spec):
    prior = make_prior("ar", **SPECS[spec])
    tokens, labels = tokens_of(prior, 5), torch.arange(5)
    bits = encode(prior.coding_model(labels, CodingOptions()), tokens).bits
    torch.testing.assert_close(bits.float(), prior.validation_bits(tokens, labels, {}), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("sizes", [[11], [7, 5]])
@pytest.mark.parametrize("b", [0, 1, 5])
def test_next_scale_comes_back_and_takes_its_exact_likelihood(make_prior, sizes, b):
    prior = make_prior("var", sizes=sizes)
    tokens, labels = tokens_of(prior, b), torch.arange(b)
    message = encode(prior.coding_model(labels, CodingOptions()), tokens)
    assert torch.equal(decode(prior.coding_model(labels, CodingOptions()), message.stream, b, len(sizes)), tokens)
    if b:
        torch.testing.assert_close(message.bits.float(), prior.validation_bits(tokens, labels, {}), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("options", [MaskGITCoding(), MaskGITCoding(order="random", steps=4)], ids=["halton", "random"])
def test_maskgit_takes_what_each_group_costs_given_all_groups_before(make_prior, options):
    prior = make_prior("maskgit", sizes=[7, 5])
    tokens, labels = tokens_of(prior, 3), torch.arange(3)
    groups = options.groups(prior.spec.scales)
    assert torch.cat(groups).sort().values.equal(torch.arange(16)) and len(groups) == options.steps
    expected, masked = torch.zeros(3), torch.ones(3, 16, dtype=torch.bool)
    for group in groups:
        features = prior._features(tokens, masked, labels)[:, group]
        expected += prior.codes.nats(features.flatten(0, 1), tokens[:, group].flatten(0, 1)).view(3, -1).sum(1) / math.log(2)
        masked[:, group] = False
    bits = encode(prior.coding_model(labels, options), tokens).bits
    torch.testing.assert_close(bits.float(), expected, rtol=1e-5, atol=1e-3)


def test_orders_are_a_function_of_the_seed():
    first, again, other = (torch.cat(MaskGITCoding(order="random", seed=s).groups(((4, 4),))) for s in (1, 1, 2))
    assert first.equal(again) and not first.equal(other)


@pytest.mark.parametrize("raster", [True, False])
def test_a_perfect_model_takes_the_entropy(toy, raster):
    """Every state once: the lengths are -log2 of its probability, whatever the order, so their mean is the entropy."""
    tokens, b = toy.states[..., None], len(toy.states)
    groups = [torch.tensor([i]) for i in (range(4) if raster else (2, 0, 3, 1))]

    def logits(tokens, step):
        masked = torch.ones(b, 4, dtype=torch.bool)
        masked[:, torch.cat([torch.empty(0, dtype=torch.long), *groups[:step]])] = False
        return toy.masked_logits(tokens, masked, groups[step].expand(b, -1), torch.arange(b), (True,))

    model = CodingModel(groups, logits)
    message = encode(model, tokens)
    torch.testing.assert_close(message.bits, -toy.probabilities.log2(), rtol=0, atol=1e-4)
    assert decode(model, message.stream, b, 1).equal(tokens)
    assert 8 * len(message.stream) == pytest.approx(-toy.probabilities.log2().sum().item(), abs=64)
    entropy = -(toy.probabilities * toy.probabilities.log2()).sum()
    assert (toy.probabilities * message.bits).sum().item() == pytest.approx(entropy.item(), abs=1e-4)


def test_draws_of_a_perfect_model_take_the_entropy_per_image(toy, causal):
    drawn = toy.probabilities.multinomial(4000, replacement=True, generator=torch.Generator().manual_seed(0))
    tokens = toy.states[drawn][..., None]
    logits = causal(toy.masked_logits)
    model = CodingModel(torch.arange(4).split(1), lambda tokens, step: logits(tokens, [step] * len(tokens), 1, (True,)))
    stream = encode(model, tokens).stream
    entropy = -(toy.probabilities * toy.probabilities.log2()).sum().item()
    assert 8 * len(stream) / 4000 == pytest.approx(entropy, rel=0.03)  # the draws' own error is 1 %
    assert decode(model, stream, 4000, 1).equal(tokens)


@pytest.mark.parametrize("k", [2, 3, 256, 257, 1000, 65536, 262144])
def test_a_uniform_model_takes_log2_k(k):
    t, b = 8, 16
    tokens = torch.randint(k, (b, t, 1), generator=torch.Generator().manual_seed(k))
    tokens[0, 0], tokens[0, 1] = 0, k - 1
    model = stepwise([torch.zeros(t, 1).expand(t, k)], t, b)
    message = encode(model, tokens)
    torch.testing.assert_close(message.bits, torch.full((b,), t * math.log2(k), dtype=torch.float64), rtol=1e-6, atol=0)
    assert 0 <= 8 * len(message.stream) - b * t * math.log2(k) <= 64 + 1e-3 * b * t * math.log2(k)
    assert decode(model, message.stream, b, 1).equal(tokens)


def test_improbable_and_impossible_tokens_come_back_too():
    logits = torch.full((4, 600), -torch.inf)
    logits[:, 0], logits[:, 1] = 0.0, -80.0
    tokens = torch.tensor([0, 1, 2, 599]).view(1, 4, 1)
    model = stepwise([logits], 4, 1)
    message = encode(model, tokens)
    assert message.bits.isinf().all() and len(message.stream) <= 20
    assert decode(model, message.stream, 1, 1).equal(tokens)


def test_the_encoder_shows_the_model_nothing_that_the_decoder_does_not_know(make_prior):
    prior = make_prior("maskgit", sizes=[7, 5])
    tokens, labels, options = tokens_of(prior, 4), torch.arange(4), MaskGITCoding(steps=6)
    shown = []

    def spied():
        model = prior.coding_model(labels, options)
        return CodingModel(model.groups, lambda tokens, step: shown.append(tokens.clone()) or model.logits(tokens, step))

    stream = encode(spied(), tokens).stream
    assert decode(spied(), stream, 4, 2).equal(tokens)
    assert len(shown) == 12 and all(torch.equal(*pair) for pair in zip(shown[:6], shown[6:], strict=True))


@pytest.mark.parametrize("name", ["ar", "maskgit"])
def test_large_vocabularies_are_worked_on_a_portion_at_a_time(make_prior, name, monkeypatch):
    prior = make_prior(name, sizes=[262144], scales=[[2, 3]], width=16, depth=1)
    options = prior.coding_type() if name == "ar" else MaskGITCoding(steps=2)
    seen = []
    original = torch.Tensor.logsumexp
    monkeypatch.setattr(torch.Tensor, "logsumexp", lambda self, *rest: seen.append(self.numel()) or original(self, *rest))
    tokens, labels = tokens_of(prior, 24), torch.arange(24) % 5
    message = encode(prior.coding_model(labels, options), tokens)
    assert HELD / 2 < max(seen) <= HELD < 24 * 262144
    assert decode(prior.coding_model(labels, options), message.stream, 24, 1).equal(tokens)
    assert 0 <= 8 * len(message.stream) - message.bits.sum() <= 64 + 0.001 * message.bits.sum()


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="tried with AVX-512 alone")
@pytest.mark.parametrize("name", ["ar", "maskgit"])
def test_another_number_of_threads_reads_the_message(make_prior, name):
    """Found by trial, on the width of `nano`; no library promises it."""
    prior = make_prior(name, width=160, heads=4, sizes=[1024], scales=[[2, 2]])
    options = prior.coding_type() if name == "ar" else MaskGITCoding(steps=2)
    tokens, labels = tokens_of(prior, 48), torch.arange(48) % 6
    stream = encode(prior.coding_model(labels, options), tokens).stream
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert decode(prior.coding_model(labels, options), stream, 48, 1).equal(tokens)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["ar", "maskgit"])
def test_a_damaged_message_or_another_model_never_gives_the_same_tokens(make_prior, name):
    prior = make_prior(name)
    options = prior.coding_type()
    tokens, labels = tokens_of(prior, 4), torch.arange(4)
    stream = encode(prior.coding_model(labels, options), tokens).stream

    def read(stream, prior=prior, labels=labels):
        try:
            return decode(prior.coding_model(labels, options), stream, 4, 1)
        except DamagedMessage:
            return None

    assert torch.equal(decode(prior.coding_model(labels, options), stream, 4, 1), tokens)
    flipped = [stream[:i] + bytes([stream[i] ^ 64]) + stream[i + 1 :] for i in (0, 9)]
    damaged = [stream[:-4], stream[4:], stream + stream, *flipped]
    for found in [*map(read, damaged), read(stream, labels=labels.flip(0)), read(stream, prior=make_prior(name, awake=False))]:
        assert found is None or not found.equal(tokens)
    for wrong, says in ((stream[:-1], "32-bit words"), (stream + stream, "follows its last token")):
        with pytest.raises(DamagedMessage, match=says):
            decode(prior.coding_model(labels, options), wrong, 4, 1)


def test_a_symbol_outside_the_alphabet_is_damage():
    # under the even model the padding of the last block, 512 to 543 of 544, has the least probability there is: read garbage
    model = stepwise([torch.full((64, 513), -torch.inf).index_fill(1, torch.tensor([512]), 0.0)], 64, 1)
    with pytest.raises(DamagedMessage):
        decode(model, b"\xff" * 64, 1, 1)


def test_logits_that_are_no_numbers_are_refused():
    for value in (torch.nan, torch.inf):
        with pytest.raises(UserError, match="not finite"):
            encode(stepwise([torch.full((1, 4), value)], 1, 1), torch.zeros(1, 1, 1, dtype=torch.long))


@pytest.mark.parametrize("wrong", [{"order": "confidence"}, {"schedule": "arcos"}, {"steps": 0}])
def test_options_that_cannot_be(wrong):
    with pytest.raises(UserError, match=f"coding.{next(iter(wrong))}: "):
        MaskGITCoding(**wrong)
