"""Sizes, what sees what, the cache, and arithmetic that does not depend on the neighbours."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stage2_prior.autoregressive import StepwiseLogits
from stage2_prior.priors import PRIORS, build_prior
from stage2_prior.rows import RowMap, dropout, dropout_keys, linear
from stage2_prior.transformer import SIZES, Shape, Transformer, rotary_angles, rotate, take


def counted(depth, width, hidden, head):
    """Parameters of a trunk by hand, without its tables of classes and positions."""
    block = 4 * width**2 + 3 * width * hidden + 6 * width + 2 * head  # attention, SwiGLU, offsets, scales of q and k
    return depth * block + 6 * width**2 + width + width  # ... modulation, last norm, one register


PARAMETERS = {  # by hand, and in millions as the literature's tables give them
    "nano": (counted(4, 160, 448, 40), 1.4),
    "T": (counted(6, 384, 1024, 64), 12),
    "S": (counted(12, 512, 1408, 64), 40),
    "B": (counted(12, 768, 2048, 64), 89),
    "L": (counted(24, 1024, 2752, 64), 310),
    "XL": (counted(28, 1152, 3072, 64), 454),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_have_the_parameters_that_the_table_states(name):
    with torch.device("meta"):
        trunk = Transformer(((16, 16),), 1000, SIZES[name], causal=False)
    tables = trunk.classes.numel() + trunk.positions.numel()
    exact, millions = PARAMETERS[name]
    assert sum(parameter.numel() for parameter in trunk.parameters()) - tables == exact
    assert exact / 1e6 == pytest.approx(millions, rel=0.05)
    assert SIZES[name].width % (4 * SIZES[name].heads) == 0


# with 16 x 16 tokens, 16,384 codes and 1000 classes, in millions: the configurations' comments say so
WHOLE = {"nano": 4.3, "T": 18.3, "S": 49.2, "B": 102.1, "L": 328.1, "XL": 474.4}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PRIORS)
def test_whole_priors_have_the_parameters_that_their_configurations_state(name, size):
    with torch.device("meta"):
        scales = [[8, 16], [8, 16]] if name == "var" else [[16, 16]]
        prior = build_prior(name, sizes=[16_384], scales=scales, image_size=[256, 256], num_classes=1000, size=size)
    total = sum(parameter.numel() for parameter in prior.parameters())
    width, (exact, _) = SIZES[size].width, PARAMETERS[size]
    tables = (1001 + 256 + 16_384) * width + 16_384  # classes, positions, codes, biases of the logits
    assert total - exact - tables == {"maskgit": 1, "ar": 0, "var": 2}[name] * width  # what is masked; every scale
    assert round(total / 1e6, 1) == WHOLE[size]


def feature_gradient(prior, i, n):
    """|d feature_i / d x_j| for the token embeddings j; feature 0 is the class place's."""
    x = torch.randn(1, n, prior.trunk.shape.width, generator=torch.Generator().manual_seed(1), requires_grad=True)
    features = prior.trunk(x, torch.tensor([2]))
    (features[0, i] * torch.randn(features.shape[-1], generator=torch.Generator().manual_seed(2))).sum().backward()
    assert x.grad is not None
    return x.grad.abs().sum((0, 2))


def test_every_token_sees_every_other_in_the_bidirectional_trunk(make_prior):
    prior = make_prior("maskgit")
    for i in range(17):
        assert (feature_gradient(prior, i, 16) > 0).all()


def test_causal_features_see_exactly_the_tokens_before(make_prior):
    prior = make_prior("ar")
    for i in range(16):
        gradient = feature_gradient(prior, i, 15)  # feature i predicts token i: it may know tokens 0 .. i - 1
        assert (gradient[:i] > 0).all() and (gradient[i:] == 0).all()


@pytest.mark.parametrize("sizes", [[11], [7, 5]])
@pytest.mark.parametrize("name", PRIORS)
def test_every_parameter_gets_a_gradient(make_prior, name, sizes):
    prior = make_prior(name, sizes=sizes, dropout=0.1).train()
    noise = prior.draw_noise(32, torch.Generator().manual_seed(0))
    tokens = torch.stack([torch.randint(size, (32, 16)) for size in sizes], dim=-1)
    prior(tokens, torch.arange(32) % 5, noise).backward()
    for key, parameter in prior.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


def test_gates_start_closed_and_the_class_still_counts(make_prior):
    prior = make_prior("ar", awake=False)
    assert all((block.offsets == 0).all() for block in prior.trunk.blocks) and (prior.trunk.modulation.weight == 0).all()
    first = prior._features(torch.zeros(5, 16, 1, dtype=torch.long), torch.arange(5))[:, 0]
    assert not first[0].equal(first[1])


@pytest.mark.parametrize("sizes", [[11], [7, 5]])
def test_cached_logits_equal_a_full_pass(make_prior, sizes):
    prior = make_prior("ar", sizes=sizes)
    tokens = torch.stack([torch.randint(size, (3, 16)) for size in sizes], dim=-1)
    labels = torch.tensor([0, 3, 4])
    with torch.no_grad():
        full = [prior._features(tokens, each) for each in (labels, torch.full((3,), 5))]
        cached = StepwiseLogits(prior, labels).causal
        # the branches part (3, 4), one catches up over several tokens (5), they go together again (6 ...)
        plan = {3: (True,), 4: (True,), 9: (False,), 10: (False,)}
        for i in range(16):
            branches = plan.get(i, (True, False))
            expected = prior.codes.logits(torch.cat([full[0 if branch else 1][:, i] for branch in branches]))
            logits, n = cached(tokens, [i] * 3, 1, branches), 3 * len(branches)
            for j in range(len(sizes)):
                places, before = torch.arange(n), torch.zeros(n, j, dtype=torch.long)
                torch.testing.assert_close(logits(j, places, before), expected(j, places, before), atol=1e-5, rtol=1e-5)


def test_the_last_block_alone_at_some_places_gives_the_same_features(make_prior):
    prior = make_prior("maskgit")
    x, labels = torch.randn(3, 16, 32), torch.tensor([0, 1, 5])
    queries = torch.stack([torch.randperm(17)[:6] for _ in range(3)])
    some = prior.trunk(x, labels, queries=queries)
    torch.testing.assert_close(some, take(prior.trunk(x, labels), queries), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PRIORS)
def test_gradient_checkpointing_changes_no_gradient(make_prior, name):
    def gradients(checkpointing):
        prior = make_prior(name, dropout=0.2).train()
        if checkpointing:
            prior.enable_gradient_checkpointing()
        noise = prior.draw_noise(4, torch.Generator().manual_seed(0))
        prior(torch.arange(64).view(4, 16, 1) % 11, torch.arange(4), noise).backward()
        return [parameter.grad for parameter in prior.parameters()]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        assert plain.equal(recomputed)


@pytest.mark.parametrize("name", PRIORS)
def test_compiled_blocks_are_one_graph_with_the_same_gradients(make_prior, name):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def gradients(compiled):
        prior = make_prior(name, depth=10, dropout=0.2).train()  # more blocks than a function may have graphs
        names = [name for name, _ in prior.named_parameters()]
        if compiled:
            prior.trunk.compile_blocks(backend=backend, fullgraph=True)
        assert [name for name, _ in prior.named_parameters()] == names
        noise = prior.draw_noise(4, torch.Generator().manual_seed(0))
        prior(torch.arange(64).view(4, 16, 1) % 11, torch.arange(4), noise).backward()
        return [parameter.grad for parameter in prior.parameters()]

    torch._dynamo.reset()
    for plain, compiled in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(plain, compiled, atol=1e-6, rtol=1e-5)
    assert len(graphs) == 1


def test_rotary_attention_depends_on_the_displacement_only():
    angles = rotary_angles(((6, 5),), 16).view(6, 5, 8)
    q, k = torch.randn(2, 1, 1, 1, 16).unbind(0)
    ones = torch.ones(16)

    def product(a, b):
        turned = [
            rotate(v, ones, angles[y, x].cos()[None, None], angles[y, x].sin()[None, None]) for v, (y, x) in ((q, a), (k, b))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product((0, 1), (2, 4)), product((3, 0), (5, 3)))
    assert not torch.isclose(product((0, 1), (2, 4)), product((0, 1), (2, 3)))


def test_attention_ignores_the_length_of_queries_and_keys(make_prior):
    prior = make_prior("maskgit")
    x, labels = torch.randn(2, 16, 32), torch.tensor([0, 1])
    before = prior.trunk(x, labels)
    with torch.no_grad():
        for block in prior.trunk.blocks:
            block.q.weight *= 5
            block.kv.weight[:32] *= 7  # the keys' half
    torch.testing.assert_close(prior.trunk(x, labels), before, atol=1e-4, rtol=1e-4)


def test_scales_share_one_system_of_coordinates():
    coarse, fine = rotary_angles(((2, 2), (4, 4)), 8).split([4, 16])
    # the centre of a coarse cell is the mean of its four fine cells
    torch.testing.assert_close(coarse[0], fine.view(4, 4, 4)[:2, :2].mean((0, 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
def test_linear_rows_are_the_same_in_any_batch(threads, dtype):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        # small, nano, a vocabulary seen through 16 channels, S, B's SwiGLU, L
        for inputs, outputs in ((32, 96), (160, 896), (448, 160), (16, 20_000), (512, 1536), (2048, 768), (1024, 2752)):
            x, weight, bias = (torch.randn(shape, dtype=dtype) for shape in ((272, inputs), (outputs, inputs), (outputs,)))
            packed = RowMap(weight, bias)
            # Intel's AVX2 kernels share some shapes among two threads by the number of rows; AMD's were seen not to
            tried = threads == 1 or torch.backends.cpu.get_cpu_capability() == "AVX512"
            for multiply in [packed, *([lambda x: linear(x, weight, bias)] if tried else [])]:  # noqa: B023
                everything = multiply(x)
                atol, rtol = (1e-3, 1e-4) if dtype == torch.float32 else (1.0, 0.02)  # parts are added in bfloat16
                torch.testing.assert_close(everything, F.linear(x, weight, bias), atol=atol, rtol=rtol)
                for rows in (1, 2, 3, 5, 8, 11, 66, 195):
                    assert multiply(x[:rows]).equal(everything[:rows])
                    assert multiply(x[-rows:]).equal(everything[-rows:])
    finally:
        torch.set_num_threads(before)


def test_dropout_masks_belong_to_samples_and_places():
    x, seeds = torch.ones(64, 40, 30), torch.randint(-(2**31), 2**31, (64,))
    keys = dropout_keys(seeds, 5)
    dropped = dropout(x, 0.1, keys[3])
    assert dropped[10:20].equal(dropout(x[10:20], 0.1, dropout_keys(seeds[10:20], 5)[3]))
    assert abs((dropped == 0).float().mean().item() - 0.1) < 0.005
    assert dropped.max().item() == pytest.approx(1 / 0.9)
    kept = (dropped > 0).double().flatten(1)
    assert kept.mean(0).min() > 0.6 and kept.mean(1).sub(0.9).abs().max() < 0.05
    other = (dropout(x, 0.1, keys[4]) > 0).double().flatten(1)
    rows = torch.cat([kept, other])
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlation.abs().max() < 6 / 1200**0.5  # 128 masks, no pair alike


def test_shape_rounds_the_hidden_features_up():
    assert Shape(1, 512, 8).hidden == 1408 and Shape(1, 384, 6).hidden == 1024
