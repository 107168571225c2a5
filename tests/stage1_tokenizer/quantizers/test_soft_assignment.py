"""Soft assignment against its plain writing and its theory, in float64."""

import pytest
import torch

from stage1_tokenizer.quantizers.nearest import nearest_codes
from stage1_tokenizer.quantizers.soft_assignment import TILE, soft_assign

N, K, C, TAU = 37, 9, 4, 0.7  # more rows than the smallest tile


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
@pytest.mark.parametrize(("shift", "tile"), [(0.0, 1 << 19), (3.0, 1)])
def test_every_field_and_gradient_equal_the_plain_writing(
    z, codebook, draw, similarity, with_widths, shift, tile, monkeypatch
):
    monkeypatch.setitem(TILE, "cpu", tile)
    z, codebook = (z + shift).detach().requires_grad_(), (codebook + shift).detach().requires_grad_()
    temperature = torch.tensor(TAU, dtype=torch.float64, requires_grad=True)
    widths = torch.rand(K, generator=draw, dtype=torch.float64).add(0.5).requires_grad_() if with_widths else None
    inputs = [z, codebook, temperature, *([widths] if widths is not None else [])]
    soft = soft_assign(z, codebook, temperature, similarity, widths)
    logits, p = plain(z, codebook, temperature, similarity, widths)
    expected = [p @ codebook, p.square().sum(1), p.mean(0), logits.exp().sum(1).log()]
    assert torch.equal(soft.index, logits.argmax(1))
    fields = [soft.codes, soft.purity, soft.usage, soft.log_partition]
    cotangents = [torch.randn(field.shape, generator=draw, dtype=torch.float64) for field in fields]
    for field, value in zip(fields, expected, strict=True):
        torch.testing.assert_close(field, value, rtol=1e-11, atol=1e-11)
    mine = torch.autograd.grad(fields, inputs, cotangents)
    theirs = torch.autograd.grad(expected, inputs, cotangents)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("field", ["codes", "purity", "usage", "log_partition"])
def test_the_gradient_of_one_field_alone(z, codebook, draw, field):
    _, p = plain(z, codebook, TAU, "squared_distance", None)
    logits, _ = plain(z, codebook, TAU, "squared_distance", None)
    fields = {"codes": p @ codebook, "purity": p.square().sum(1), "usage": p.mean(0), "log_partition": logits.logsumexp(1)}
    expected = fields[field]
    cotangent = torch.randn(expected.shape, generator=draw, dtype=torch.float64)
    mine = torch.autograd.grad(getattr(soft_assign(z, codebook, TAU), field), [z, codebook], cotangent)
    theirs = torch.autograd.grad(expected, [z, codebook], cotangent)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_a_misspelt_similarity_is_refused(z, codebook):
    with pytest.raises(ValueError, match="cosine"):
        soft_assign(z, codebook, 1.0, "cosin")


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
