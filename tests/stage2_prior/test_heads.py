"""What every head promises, and what each of them computes, worked out from its formula."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pipeline.core.errors import UserError
from stage2_prior import cross_entropy
from stage2_prior.cross_entropy import HELD
from stage2_prior.heads import HEADS, build_head
from stage2_prior.priors import PRIORS, open_prior
from stage2_prior.rows import RowMap
from stage2_prior.sampling import UNKNOWN

SIZES, DIMS, WIDTH = (7, 5), (3, 2), 16
MADE_OF_CODES = ["codebook", "geometric"]


def code_vectors(sizes=SIZES, dims=DIMS):
    generator = torch.Generator().manual_seed(4)
    return [3 + 5 * torch.randn(size, dim, generator=generator) for size, dim in zip(sizes, dims, strict=True)]


@pytest.fixture(params=[(name, chained) for name in HEADS for chained in (False, True)], ids=str)
def head(request):
    return make(*request.param)


def make(name, chained=False) -> Any:
    torch.manual_seed(0)
    head = build_head(name, SIZES, WIDTH, DIMS, chained)
    head.start(code_vectors())
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return head


def batch(n=20):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.stack([torch.randint(size, (n,), generator=generator) for size in SIZES], dim=1)
    return torch.randn(n, WIDTH, generator=generator), tokens


def test_loss_and_nats_are_those_of_the_logits(head):
    features, tokens = batch()
    logits = head.logits(features)
    assert logits.sizes == SIZES
    expected, nats = torch.zeros(()), torch.zeros(20)
    for j in range(2):
        each = logits(j, torch.arange(20), tokens[:, :j])
        assert each.shape == (20, SIZES[j])
        expected = expected + F.cross_entropy(each, tokens[:, j], label_smoothing=0.1, reduction="sum")
        nats = nats + F.cross_entropy(each, tokens[:, j], reduction="none")
    torch.testing.assert_close(head.loss(features, tokens, 0.1), expected)
    torch.testing.assert_close(head.nats(features, tokens), nats.detach())
    gradients = torch.autograd.grad(head.loss(features, tokens, 0.1), list(head.parameters()), allow_unused=True)
    wanted = torch.autograd.grad(expected, list(head.parameters()), allow_unused=True)
    for (name, _), ours, theirs in zip(head.named_parameters(), gradients, wanted, strict=True):
        assert (ours is None) == (theirs is None), name
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_logits_at_some_places_are_those_rows_of_all(head):
    features, tokens = batch()
    places = torch.tensor([17, 3, 3, 0])
    logits = head.logits(features)
    everywhere = logits(1, torch.arange(20), tokens[:, :1])
    assert head.logits(features.view(4, 5, WIDTH))(1, places, tokens[places, :1]).equal(everywhere[places])
    others = (tokens[:, :1] + 1) % SIZES[0]
    assert logits(1, torch.arange(20), others).equal(everywhere) == logits.independent == (len(head.chains) == 0)


def test_logits_between_two_places_are_a_line_through_both(head):
    """Guidance asks for them: worked out from one query, as exact as from both places' logits."""
    head.double()
    features, tokens = batch()
    logits = head.logits(features.double())
    ends = (torch.arange(10, 20), torch.arange(10))
    for j in range(2):
        before = tokens[:10, :j]
        start, end = (logits(j, places, before) for places in ends)
        for weight in (0.0, 1.0, 0.5, 3.0):
            found = logits.between(j, ends, torch.full((10, 1), weight), before)
            torch.testing.assert_close(found, (start + weight * (end - start)).float(), rtol=1e-5, atol=1e-5)
            if weight in (0.0, 1.0):  # no guidance is no change
                assert torch.equal(found, (end if weight else start).float())


@pytest.mark.parametrize("bits, tolerance", [(32, 1e-5), (16, 2e-2)])
def test_logits_between_two_places_are_as_exact_as_the_type_of_the_product(head, bits, tolerance):
    features, tokens = batch()
    ends, weight, before = (torch.arange(10, 20), torch.arange(10)), torch.full((10, 1), 3.0), tokens[:10, :1]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bits == 16):
        found = head.logits(features, head.maps(packed=True)).between(1, ends, weight, before)
        exact = copy.deepcopy(head).double()
        with torch.autocast("cpu", enabled=False):
            expected = exact.logits(features.double()).between(1, ends, weight, before)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_probabilities_of_all_combinations_of_indices_sum_to_one(head):
    features, _ = batch(4)
    combinations = torch.cartesian_prod(*(torch.arange(size) for size in SIZES))
    nats = head.nats(features.repeat_interleave(len(combinations), 0), combinations.repeat(4, 1))
    torch.testing.assert_close((-nats).exp().view(4, -1).sum(1), torch.ones(4))


@pytest.mark.parametrize("name", HEADS)
def test_only_a_chained_head_learns_indices_that_belong_together(name):
    """Index 1 is index 0 plus a constant: 2 log 5 nats where the two are independent, log 5 where they are not."""
    reached = {}
    for chained in (False, True):
        torch.manual_seed(0)
        head = build_head(name, (5, 5), WIDTH, (4, 4), chained)
        head.start(code_vectors((5, 5), (4, 4)))
        optimizer = torch.optim.Adam(head.parameters(), 0.02)
        values = torch.arange(100) % 5
        tokens, features = torch.stack([values, (values + 2) % 5], dim=1), torch.ones(100, WIDTH)
        for _ in range(150):
            optimizer.zero_grad()
            loss = head.loss(features, tokens) / 100
            loss.backward()
            optimizer.step()
        reached[chained] = loss.item()
    assert reached[False] == pytest.approx(2 * math.log(5), rel=0.01)
    assert reached[True] == pytest.approx(math.log(5), rel=0.03)


def test_a_chained_head_starts_as_an_independent_one():
    independent, chained = (build_head("tied", SIZES, WIDTH, None, chained) for chained in (False, True))
    chained.load_state_dict(independent.state_dict(), strict=False)
    assert chained.loss(*batch()).equal(independent.loss(*batch()))


def test_fresh_embeddings_and_logits_are_small():
    for name in HEADS:
        torch.manual_seed(0)
        head = build_head(name, (4096,), 256, [16], True)
        head.start([3 + 5 * torch.randn(4096, 16)])
        features = F.rms_norm(torch.randn(64, 256), (256,))
        assert head.embed(torch.arange(4096)[:, None]).std().item() == pytest.approx(0.02, rel=0.3)
        loss = head.loss(features, torch.randint(4096, (64, 1))) / 64
        assert loss.item() == pytest.approx(torch.tensor(4096.0).log().item(), rel=0.02)


@pytest.mark.parametrize("name", MADE_OF_CODES)
def test_code_vectors_keep_their_geometry(name):
    head = make(name)
    for j, table in enumerate(code_vectors()):
        vectors = head.codes(j)[0]
        assert vectors.mean(0).abs().max() < 1e-6 and vectors.square().mean().item() == pytest.approx(1)
        ratio = torch.pdist(vectors) / torch.pdist(table)
        torch.testing.assert_close(ratio, torch.full_like(ratio, ratio[0].item()))
        torch.testing.assert_close(
            head.embed(torch.tensor([[1, 0], [2, 0]])).diff(dim=0)[0], head.inputs[0](head.codes(0)[0][2] - head.codes(0)[0][1])
        )


def test_the_codebook_head_is_an_inner_product_with_the_code():
    head, (features, _) = make("codebook"), batch()
    for j in range(2):
        logits = head.logits(features)(j, torch.arange(20), torch.zeros(20, j, dtype=torch.long))
        query = features @ head.outputs[j].weight.T
        expected = torch.stack([(query * vector).sum(1) for vector in head.codes(j)[0]], dim=1) + head.biases[j]
        torch.testing.assert_close(logits, expected)


def test_the_geometric_head_is_the_negative_squared_distance_over_a_temperature():
    head, (features, _) = make("geometric"), batch()
    for j in range(2):
        logits = head.logits(features)(j, torch.arange(20), torch.zeros(20, j, dtype=torch.long))
        query, vectors = features @ head.outputs[j].weight.T, head.get_buffer(f"vectors_{j}")
        distances = (query[:, None] - vectors).square().sum(-1)
        expected = -distances / head.log_temperatures[j].exp() + head.biases[j]
        torch.testing.assert_close(logits.log_softmax(1), expected.log_softmax(1), rtol=1e-4, atol=1e-5)


def test_the_geometric_head_can_prefer_a_code_amid_the_others():
    """A corner of a square and its centre: no inner product is largest at the centre, a distance is smallest there."""
    square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]])
    features = torch.cartesian_prod(torch.linspace(-2, 2, 20), torch.linspace(-2, 2, 20))  # the centre itself not among them
    winners = {}
    for name in MADE_OF_CODES:
        head: Any = build_head(name, (5,), 2, [2], True)
        head.start([square])
        torch.nn.init.eye_(head.outputs[0].weight)
        logits = head.logits(features)(0, torch.arange(400), torch.zeros(400, 0, dtype=torch.long))
        winners[name] = set(logits.argmax(1).tolist())
    assert winners == {"codebook": {0, 1, 2, 3}, "geometric": {0, 1, 2, 3, 4}}


@pytest.mark.parametrize("name", MADE_OF_CODES)
def test_a_large_vocabulary_costs_its_biases_and_two_small_maps(name):
    with torch.device("meta"):
        head = build_head(name, (262_144,), 768, [16], True)
        tied = build_head("tied", (262_144,), 768, None, True)
    temperature = len(list(head.parameters())) - 3
    assert sum(parameter.numel() for parameter in head.parameters()) == 262_144 + 2 * 768 * 16 + temperature
    assert sum(parameter.numel() for parameter in tied.parameters()) == 262_144 * 769


@pytest.mark.parametrize("name", MADE_OF_CODES)
@pytest.mark.parametrize("prior", PRIORS)
def test_a_saved_prior_needs_no_tokenizer(make_prior, prior, name, tmp_path):
    made = make_prior(prior, sizes=[7, 5], head=name, code_dims=[3, 2])
    made.codes.start(code_vectors())
    made.save_pretrained(tmp_path)
    loaded = open_prior(tmp_path)
    assert loaded.config["head"] == name and loaded.config["code_dims"] == [3, 2]
    assert loaded.state_dict().keys() == made.state_dict().keys()
    assert all(a.equal(b) for a, b in zip(loaded.state_dict().values(), made.state_dict().values(), strict=True))
    options = made.options_type(guidance_scale=2.0)
    assert loaded.sample([1, 4], options, [0, 1]).tokens.equal(made.sample([1, 4], options, [0, 1]).tokens)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("prior", PRIORS)
def test_every_parameter_of_every_head_gets_a_gradient_and_code_vectors_none(make_prior, prior, name):
    made = make_prior(prior, sizes=[7, 5], head=name, code_dims=[3, 2]).train()
    made.codes.start(code_vectors())
    before = {key: each.clone() for key, each in made.named_buffers()}
    tokens = torch.stack([torch.randint(size, (32, 16)) for size in SIZES], dim=-1)
    made(tokens, torch.arange(32) % 5, made.draw_noise(32, torch.Generator().manual_seed(0))).backward()
    for key, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
    assert all(each.equal(before[key]) for key, each in made.named_buffers())


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("prior", PRIORS)
def test_samples_do_not_depend_on_how_many_logits_are_held(make_prior, monkeypatch, prior, name):
    made = make_prior(prior, sizes=[7, 5], head=name, code_dims=[3, 2])
    made.codes.start(code_vectors())
    given = torch.full((5, 16, 2), UNKNOWN)
    given[1, 2:7] = 3
    orders = [{"order": "confidence"}, {"order": "halton"}] if prior == "maskgit" else [{}]
    for options in (made.options_type(guidance_scale=2.0, **order) for order in orders):
        tokens = []
        for held in (1, 1 << 24):  # sixteen positions at a time, and all at once
            monkeypatch.setitem(HELD, "cpu", held)
            tokens.append(made.sample(range(5), options, range(5), given).tokens)
        assert tokens[0].equal(tokens[1])


@pytest.mark.parametrize("prior", PRIORS)
def test_sampling_never_holds_the_logits_of_all_masked_positions(make_prior, monkeypatch, prior):
    k, seen = 20_000, []
    made = make_prior(prior, sizes=[k], head="codebook", code_dims=[4])
    made.codes.start([torch.randn(k, 4)])
    monkeypatch.setitem(cross_entropy.HELD, "cpu", 4 * 16 * k)
    plain = RowMap.__call__
    monkeypatch.setattr(RowMap, "__call__", lambda *inputs: (seen.append(plain(*inputs).numel()), plain(*inputs))[1])
    made.sample(torch.arange(20) % 5, made.options_type(guidance_scale=2.0), range(20))
    assert max(seen) == 16 * k  # all at once it would be 20 x 16 x 2 rows


def test_bad_heads_are_refused_in_one_line(make_prior):
    with pytest.raises(UserError, match="did you mean geometric"):
        make_prior("maskgit", head="geometrik")
    for name in MADE_OF_CODES:
        with pytest.raises(UserError, match="tokenize again, or use head=tied"):
            make_prior("ar", head=name)
