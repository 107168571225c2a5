"""Soft assignment against its plain writing and its theory, in float64, and its backends against each other."""

import math
from itertools import product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stage1_tokenizer.quantizers import soft_assignment
from stage1_tokenizer.quantizers.assignment import search, tiles
from stage1_tokenizer.quantizers.assignment.scores import Scores
from stage1_tokenizer.quantizers.nearest import nearest_codes
from stage1_tokenizer.quantizers.soft_assignment import log_partition, soft_assign

N, K, C, TAU = 37, 9, 4, 0.7  # more rows than the smallest tile
FIELDS = ("codes", "purity", "usage", "log_partition")
HERE = ("dense", "streaming")  # the backends that a CPU has


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def z(draw):
    return torch.randn(N, C, generator=draw, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def codebook(draw):
    return torch.randn(K, C, generator=draw, dtype=torch.float64, requires_grad=True)


def plain(z, codebook, temperature, similarity, widths):
    """Logits and assignment as the papers write them, with the (n, k, c) differences."""
    if similarity == "squared_distance":
        score = -(z[:, None] - codebook[None]).square().sum(-1)
    elif similarity == "cosine":
        score = torch.cosine_similarity(z[:, None], codebook[None], dim=-1)
    else:
        score = z @ codebook.T
    logits = score / temperature if widths is None else score / (temperature * widths)
    return logits, logits.exp() / logits.exp().sum(1, keepdim=True)


@pytest.mark.parametrize("similarity", ["squared_distance", "cosine", "dot"])
@pytest.mark.parametrize("with_widths", [False, True])
@pytest.mark.parametrize("shift", [0.0, 3.0])
@pytest.mark.parametrize("backend", HERE)
def test_every_field_and_gradient_equal_the_plain_writing(z, codebook, draw, similarity, with_widths, shift, backend):
    z, codebook = (z + shift).detach().requires_grad_(), (codebook + shift).detach().requires_grad_()
    temperature = torch.tensor(TAU, dtype=torch.float64, requires_grad=True)
    widths = torch.rand(K, generator=draw, dtype=torch.float64).add(0.5).requires_grad_() if with_widths else None
    inputs = [z, codebook, temperature, *([widths] if widths is not None else [])]
    soft = soft_assign(z, codebook, temperature, similarity, widths, collected=z, backend=backend)
    logits, p = plain(z, codebook, temperature, similarity, widths)
    expected = [p @ codebook, p.square().sum(1), p.mean(0), logits.exp().sum(1).log()]
    assert torch.equal(soft.index, logits.argmax(1))
    torch.testing.assert_close(soft.sums, (p.T @ z).detach(), rtol=1e-11, atol=1e-11)
    fields = [soft.codes, soft.purity, soft.usage, soft.log_partition]
    cotangents = [torch.randn(field.shape, generator=draw, dtype=torch.float64) for field in fields]
    for field, value in zip(fields, expected, strict=True):
        torch.testing.assert_close(field, value, rtol=1e-11, atol=1e-11)
    mine = torch.autograd.grad(fields, inputs, cotangents)
    theirs = torch.autograd.grad(expected, inputs, cotangents)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("backend", HERE)
def test_the_gradient_of_one_field_alone(z, codebook, draw, field, backend):
    _, p = plain(z, codebook, TAU, "squared_distance", None)
    logits, _ = plain(z, codebook, TAU, "squared_distance", None)
    fields = {"codes": p @ codebook, "purity": p.square().sum(1), "usage": p.mean(0), "log_partition": logits.logsumexp(1)}
    expected = fields[field]
    cotangent = torch.randn(expected.shape, generator=draw, dtype=torch.float64)
    mine = torch.autograd.grad(getattr(soft_assign(z, codebook, TAU, backend=backend), field), [z, codebook], cotangent)
    theirs = torch.autograd.grad(expected, [z, codebook], cotangent)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_a_misspelt_similarity_or_backend_is_refused(z, codebook):
    with pytest.raises(ValueError, match="cosine"):
        soft_assign(z, codebook, 1.0, "cosin")
    with pytest.raises(ValueError, match="streaming"):
        soft_assign(z, codebook, 1.0, backend="steaming")


def test_log_partition_is_the_free_energy(z, codebook, draw):
    """F(r) = E_r[d] - tau H(r) is least at r = p, where it is -tau log Z; elsewhere it is tau KL(r||p) above."""
    energy = -TAU * soft_assign(z, codebook, TAU).log_partition
    distances = (z[:, None] - codebook[None]).square().sum(-1)
    _, p = plain(z, codebook, TAU, "squared_distance", None)
    r = torch.rand(N, K, generator=draw, dtype=torch.float64).softmax(1)
    for q in (p, r):
        free = (q * distances).sum(1) + TAU * (q * q.log()).sum(1)
        torch.testing.assert_close(free - energy, TAU * (q * (q / p).log()).sum(1), rtol=1e-10, atol=1e-12)
    nearest = distances.min(1).values
    assert (energy <= nearest).all()
    assert (energy >= nearest - TAU * torch.tensor(K).log()).all()


def test_envelope_gradient_of_the_free_energy(z, codebook):
    soft = soft_assign(z, codebook, TAU)
    to_z, to_codes = torch.autograd.grad(-TAU * soft.log_partition.sum(), [z, codebook], retain_graph=True)
    _, p = plain(z, codebook, TAU, "squared_distance", None)
    torch.testing.assert_close(to_z, 2 * (z - soft.codes))
    torch.testing.assert_close(to_codes, 2 * (p.sum(0)[:, None] * codebook - p.T @ z))


def test_jacobian_of_the_soft_code_is_the_covariance_of_the_codes(z, codebook):
    code = soft_assign(z[:1], codebook, TAU).codes[0]
    jacobian = torch.stack([torch.autograd.grad(entry, z, retain_graph=True)[0][0] for entry in code])
    _, p = plain(z[:1], codebook, TAU, "squared_distance", None)
    centred = codebook - p @ codebook
    torch.testing.assert_close(jacobian, 2 / TAU * centred.T @ (p[0, :, None] * centred))


@pytest.mark.parametrize("tau", [1.0, 0.1, 0.01])
def test_low_temperature_is_nearest_neighbour_with_the_tail_bound(z, codebook, tau):
    soft = soft_assign(z, codebook, tau)
    assert torch.equal(soft.index, nearest_codes(z, codebook))
    _, p = plain(z, codebook, tau, "squared_distance", None)
    two = (z[:, None] - codebook[None]).square().sum(-1).topk(2, largest=False).values
    assert (1 - p.max(1).values <= (K - 1) * (-(two[:, 1] - two[:, 0]) / tau).exp() + 1e-15).all()


def test_purity_and_usage_stay_in_their_ranges(z, codebook):
    for tau in (1e-3, 1.0, 1e3):
        soft = soft_assign(z, codebook, tau)
        assert (soft.purity <= 1 + 1e-12).all()
        assert (soft.purity >= 1 / K - 1e-12).all()
        torch.testing.assert_close(soft.usage.sum(), torch.ones((), dtype=torch.float64))


def test_bfloat16_autocast_changes_nothing(z, codebook):
    z, codebook = z.float(), codebook.float()
    soft = soft_assign(z, codebook, TAU)
    with torch.autocast("cpu", torch.bfloat16):
        cast = soft_assign(z, codebook, TAU)
    assert torch.equal(soft.codes, cast.codes)
    assert torch.equal(soft.log_partition, cast.log_partition)


# The streaming backend against the dense one


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def results(backend, n, k, c, tau, similarity="squared_distance", options=(), dtype=torch.float64):
    """Every field and gradient for random inputs, with arbitrary cotangents, in float64."""
    given = {
        "z": randn(n, c, seed=1),
        "codebook": randn(k, c, seed=2),
        "temperature": torch.tensor(tau, dtype=torch.float64),
        "widths": randn(k, seed=3).sigmoid() + 0.5,
        "values": randn(k, 3, seed=4),
        "prior": randn(k, seed=5),
    }
    leaves = {name: given[name].to(dtype).requires_grad_() for name in ("z", "codebook", "temperature", *options)}
    soft = soft_assign(**leaves, similarity=similarity, collected=randn(n, 2, seed=6).to(dtype), backend=backend)
    fields = [getattr(soft, name) for name in FIELDS]
    cotangents = [randn(*field.shape, seed=7).to(dtype) for field in fields]
    gradients = torch.autograd.grad(fields, list(leaves.values()), cotangents)
    numbers = dict(zip(leaves, gradients, strict=True)) | dict(zip(FIELDS, fields, strict=True)) | {"sums": soft.sums}
    return soft, {name: number.double() for name, number in numbers.items()}


def difference(found, expected):
    """The largest, relative to each tensor's largest value (or 1)."""
    scales = {name: number.abs().max().clamp_min(1) for name, number in expected.items()}
    if "widths" in expected:  # the temperature's is the sum over the codes, and the terms cancel
        scales["temperature"] = expected["widths"].abs().sum()
    return max(((found[name] - expected[name]).abs().max() / scales[name]).item() for name in expected)


OPTIONS = [(), ("widths",), ("values", "prior"), ("widths", "values", "prior")]
TILINGS = {"one": (1024, 1 << 20), "ragged": (7, 7 * 48), "vectors": (3, 1 << 20), "codes": (1024, 1024), "both": (4, 64)}


def only(monkeypatch, kind):
    """Makes the search list no vector's codes, or every vector's, or work as it does on a GPU."""
    if kind == "as on a GPU":
        monkeypatch.setattr(search, "on_cpu", lambda tensor: False)
    elif kind != "as shipped":
        monkeypatch.setattr(search, "MOST_GROUPS", 1.0)
        monkeypatch.setattr(search, "most_listed", lambda n, k, channels: 0 if kind == "whole" else k)


KINDS = ["whole", "as shipped", "listed", "as on a GPU"]


@pytest.mark.parametrize("similarity", ["squared_distance", "cosine", "dot"])
@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_streaming_equals_dense(similarity, tiling, kind, monkeypatch):
    monkeypatch.setitem(tiles.TILE, "cpu", TILINGS[tiling])
    only(monkeypatch, kind)
    sizes = [(37, 9, 4), (50, 133, 5), (1, 70, 3), (11, 1, 2)]
    for (n, k, c), tau, options in product(sizes, [1.0, 0.1], OPTIONS):
        soft, found = results("streaming", n, k, c, tau, similarity, options)
        expected, numbers = results("dense", n, k, c, tau, similarity, options)
        assert torch.equal(soft.index, expected.index)
        assert difference(found, numbers) < 1e-12, (n, k, c, tau, options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", HERE)
def test_float32_is_right_to_its_rounding(backend, kind, monkeypatch):
    only(monkeypatch, kind)
    for similarity, options in product(["squared_distance", "cosine", "dot"], OPTIONS):
        _, exact = results("dense", 50, 133, 5, 0.5, similarity, options)
        _, found = results(backend, 50, 133, 5, 0.5, similarity, options, torch.float32)
        assert difference(found, exact) < 1e-5


@pytest.mark.parametrize("k", [16, 500])
@pytest.mark.parametrize("tau", [1.0, 0.1, 0.01, 1e-3, 1e-5, 1e-8, 1e-12])
def test_float32_at_low_temperatures_and_large_norms_is_as_right_as_the_plain_writing(tau, k):
    """Logits of 1e14 round to 1e7, the best code still has all the weight, and gradients that are 0 stay so, not 1e-7 / tau."""
    data = [64**0.5 * torch.nn.functional.normalize(randn(n, 64, seed=seed), dim=1) for n, seed in ((64, 1), (k, 2))]
    cotangent = randn(64, 64, seed=3)

    def found(backend, dtype):
        z, codebook = (x.to(dtype, copy=True).requires_grad_() for x in data)
        soft = soft_assign(z, codebook, tau, backend=backend)
        loss = (soft.codes * cotangent).sum() + soft.purity.sum() + soft.usage.square().sum()
        return [soft.codes, soft.purity, soft.usage, *torch.autograd.grad(loss, [z, codebook])]

    exact, plain32, mine = found("dense", torch.float64), found("dense", torch.float32), found("streaming", torch.float32)
    for reference, dense, streaming in zip(exact, plain32, mine, strict=True):
        error, allowed = ((x.double() - reference).abs().max().item() for x in (streaming, dense))
        assert error <= 10 * allowed + 1e-5 * max(1.0, reference.abs().max().item())


def test_a_second_derivative_is_refused_and_not_wrong(z, codebook):
    soft = soft_assign(z, codebook, TAU, backend="streaming")
    (gradient,) = torch.autograd.grad(soft.codes.square().sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("backend", HERE)
def test_no_vectors_at_all(codebook, backend):
    z = torch.zeros(0, C, dtype=torch.float64, requires_grad=True)
    soft = soft_assign(z, codebook, TAU, backend=backend)
    assert soft.codes.shape == (0, C) and len(soft.index) == len(soft.purity) == len(soft.log_partition) == 0
    soft.codes.sum().backward()
    assert z.grad is not None and z.grad.shape == z.shape
    assert log_partition(z, codebook, TAU).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_other_numbers_are_refused(codebook, dtype):
    with pytest.raises(ValueError, match=r"z: .*float32 or float64"):
        soft_assign(torch.zeros(3, C, dtype=dtype), codebook.to(dtype), TAU)
    with pytest.raises(ValueError, match=r"codebook: .*float64.*as z"):
        soft_assign(torch.zeros(3, C), codebook, TAU)


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_none_is_refused(z, codebook, tau):
    with pytest.raises(ValueError, match="temperature"):
        soft_assign(z, codebook, tau)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [1.0, 0.1, 0.01])
def test_codes_that_are_left_out_weigh_less_than_rounding_together(dtype, tau, monkeypatch):
    only(monkeypatch, "listed")
    z, codebook = randn(60, 6, seed=1).to(dtype), randn(900, 6, seed=2).to(dtype)
    found = search.search(Scores.of(z, codebook, torch.tensor(1 / tau, dtype=dtype), None, True))
    p = (-(z[:, None].double() - codebook.double()).square().sum(2) / tau).softmax(1)
    kept = torch.zeros_like(p).index_put_((found.row.long(), found.column.long()), torch.ones((), dtype=p.dtype))
    assert (kept * p).sum(1).min() > 0.5
    assert ((1 - kept) * p).sum(1).max() < 1.01 * torch.finfo(dtype).eps  # logits are rounded too
    least = torch.where(kept > 0, p, 1.0).min(1).values
    assert (torch.where(kept > 0, 0.0, p).max(1).values <= 1.01 * least).all()  # none that weighs more than one kept


@pytest.mark.parametrize(("beyond", "kept"), [(1e-6, 1), (-1e-6, 200)])
def test_the_margin_is_as_small_as_the_bound_allows(beyond, kept, monkeypatch):
    """k codes just beyond the margin weigh epsilon together, and are left out; just within, none is."""
    only(monkeypatch, "listed")
    k, dtype = 200, torch.float64
    step = (1 + beyond) * search.margin(k, dtype)
    codebook = torch.cat([torch.zeros(1, 1, dtype=dtype), torch.full((k - 1, 1), step, dtype=dtype)])
    found = search.search(Scores.of(-torch.ones(1, 1, dtype=dtype), codebook, torch.ones((), dtype=dtype), None, False))
    assert len(found.row) == kept
    assert k * math.exp(-step) == pytest.approx(torch.finfo(dtype).eps, rel=1e-4)


def test_the_skip_rate_rises_as_the_temperature_falls_to_all_but_the_nearest():
    z, codebook = randn(64, 8, seed=1), randn(600, 8, seed=2)
    rates = [soft_assign(z, codebook, tau, backend="streaming").skipped.item() for tau in (10.0, 0.3, 0.1, 1e-3, 1e-6)]
    assert rates == sorted(rates)
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(1 - 1 / 600)
    assert soft_assign(z, codebook, 1e-6, backend="dense").skipped == 0


class Largest(TorchDispatchMode):
    """Remembers the number of entries of the largest tensor that was made."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor) and x.layout == torch.strided]
        self.entries = max([self.entries, *made])
        return out


@pytest.mark.parametrize("tau", [10.0, 0.3, 1e-3])
def test_nothing_of_the_size_of_vectors_times_codes_is_made(tau, monkeypatch):
    monkeypatch.setitem(tiles.TILE, "cpu", (64, 1 << 12))
    n, k, c = 512, 2048, 4
    with Largest() as dense:
        results("dense", n, k, c, tau)
    with Largest() as streaming:
        results("streaming", n, k, c, tau)
    assert dense.entries == n * k
    assert streaming.entries <= n * k / 32


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing_but_rounding_and_results_repeat(threads):
    before = torch.get_num_threads()
    expected = results("dense", 300, 500, 5, 0.2)[1]
    try:
        torch.set_num_threads(threads)
        first, second = (results("streaming", 300, 500, 5, 0.2)[1] for _ in range(2))
        with torch.inference_mode():
            soft = soft_assign(randn(300, 5, seed=1), randn(500, 5, seed=2), 0.2, backend="streaming")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert difference(first, expected) < 1e-12
    torch.testing.assert_close(soft.codes, expected["codes"])


@pytest.mark.parametrize("tau", [3.0, 0.01])
def test_the_lowest_of_equal_codes_is_chosen_and_they_share_alike(tau):
    z, codebook = randn(40, 3, seed=1), randn(60, 3, seed=2).repeat(3, 1)
    soft = soft_assign(z, codebook, tau, backend="streaming")
    assert (soft.index < 60).all()
    torch.testing.assert_close(soft.usage.view(3, 60)[1:], soft.usage[:60].expand(2, -1), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("tau", [3.0, 0.01])
def test_a_vector_that_is_not_finite_is_seen_and_harms_no_other(backend, tau):
    z, codebook = randn(40, 3, seed=1), randn(60, 3, seed=2)
    good = soft_assign(z, codebook, tau, backend=backend)
    z[7, 1] = math.nan
    soft = soft_assign(z, codebook, tau, backend=backend)
    for name in ("codes", "purity", "log_partition"):
        found = getattr(soft, name)
        assert found[7].isnan().all()
        others = torch.arange(40) != 7
        torch.testing.assert_close(found[others], getattr(good, name)[others])


@pytest.mark.parametrize("tau", [3.0, 0.01])
def test_the_log_partition_alone(tau):
    z, codebook, prior = randn(40, 3, seed=1), randn(60, 3, seed=2), randn(60, seed=3)
    expected = soft_assign(z, codebook, tau, prior=prior, backend="dense").log_partition
    torch.testing.assert_close(log_partition(z, codebook, tau, prior), expected)


def test_the_log_partition_alone_where_whole_tiles_of_codes_cannot_be():
    z, codebook, prior = randn(40, 3, seed=1), randn(2000, 3, seed=2), randn(2000, seed=3)
    prior[:1500] = -math.inf
    expected = soft_assign(z, codebook, 0.5, prior=prior, backend="dense").log_partition
    torch.testing.assert_close(log_partition(z, codebook, 0.5, prior), expected)


@pytest.mark.parametrize(("chosen", "said"), [("streamin", "did you mean streaming"), ("triton", "this is a CPU")])
def test_an_environment_that_chooses_what_cannot_be_is_refused(chosen, said, monkeypatch):
    monkeypatch.setattr(soft_assignment, "CHOSEN", chosen)
    with pytest.raises(ValueError, match=f"LGQ_ASSIGNMENT: .*{said}"):
        soft_assignment.require_chosen(torch.device("cpu"))


def test_the_environment_chooses_the_backend(z, codebook, monkeypatch):
    assert soft_assign(z, codebook, 1e-3).skipped == 0, "dense: so few"
    monkeypatch.setattr(soft_assignment, "CHOSEN", "streaming")
    soft_assignment.require_chosen(torch.device("cpu"))
    assert soft_assign(z, codebook, 1e-3).skipped > 0.5
