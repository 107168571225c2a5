"""Shells of lattices against their published counts, inner products and errors."""

import pytest
import torch

from stage1_tokenizer.quantizers.lattice import SHELLS, Lattice, golay_code, reed_muller_code

# codes, dim, and how many codes have which cosine with any one of them
KISSING = {
    "d4": (24, 4, {1.0: 1, 0.5: 8, 0.0: 6, -0.5: 8, -1.0: 1}),
    "e8": (240, 8, {1.0: 1, 0.5: 56, 0.0: 126, -0.5: 56, -1.0: 1}),
    "bw16": (4320, 16, {1.0: 1, 0.5: 280, 0.25: 1024, 0.0: 1710, -0.25: 1024, -0.5: 280, -1.0: 1}),
    "leech": (196560, 24, {1.0: 1, 0.5: 4600, 0.25: 47104, 0.0: 93150, -0.25: 47104, -0.5: 4600, -1.0: 1}),
}


@pytest.mark.parametrize("shell", KISSING)
def test_every_cosine_comes_as_often_as_published(shell):
    count, dim, cosines = KISSING[shell]
    vectors = SHELLS[shell]().double()
    assert vectors.shape == (count, dim)
    assert len(vectors.square().sum(1).unique()) == 1
    some = vectors[:: max(1, count // 12)]
    found = (some @ vectors.T / vectors[0].square().sum()).sort(1).values
    expected = torch.tensor([value for value, times in cosines.items() for _ in range(times)], dtype=torch.float64)
    assert torch.equal(found, expected.sort().values.expand_as(found))


@pytest.mark.parametrize("shell", KISSING)
def test_codes_are_spread_evenly(shell):
    """Mean 0, covariance I / dim, and with every code its negative."""
    vectors = SHELLS[shell]().double()
    assert torch.equal(vectors.sum(0), torch.zeros(vectors.shape[1], dtype=torch.float64))
    length = vectors[0].square().sum()
    covariance = vectors.T @ vectors / length / len(vectors)
    torch.testing.assert_close(covariance, torch.eye(vectors.shape[1], dtype=torch.float64) / vectors.shape[1])


def test_the_parts_of_the_leech_shell():
    parts = [SHELLS[f"leech_type{number}"]() for number in (2, 3, 4)]
    assert [len(part) for part in parts] == [97152, 98304, 1104]
    assert torch.equal(torch.cat(parts), SHELLS["leech"]())
    assert [part.sum(1).remainder(8).unique().tolist() for part in parts] == [[0], [4], [0]]


def test_the_codes_behind_them():
    assert golay_code().sum(1).bincount().nonzero()[:, 0].tolist() == [0, 8, 12, 16, 24]
    assert golay_code().sum(1).bincount()[[0, 8, 12, 16, 24]].tolist() == [1, 759, 2576, 759, 1]
    assert reed_muller_code().sum(1).bincount()[[0, 8, 16]].tolist() == [1, 30, 1]


def test_the_search_is_a_dense_one_and_every_code_is_its_own():
    quantizer = Lattice("leech")
    z = torch.randn(20, 24, generator=torch.Generator().manual_seed(0))
    cosines = torch.nn.functional.normalize(z) @ quantizer.shell.T / 32**0.5
    out = quantizer(z)
    torch.testing.assert_close(cosines.gather(1, out.indices)[:, 0], cosines.max(1).values)
    torch.testing.assert_close(out.codes.norm(dim=1), torch.ones(20))
    some = torch.arange(0, 196560, 9973)[:, None]
    assert torch.equal(quantizer(7 * quantizer.dequantize(some)).indices, some)


def test_the_lowest_index_wins_a_tie():
    quantizer = Lattice("d4")
    z = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    best = z @ quantizer.shell.T
    assert torch.equal(quantizer(z).indices[:, 0], (best == best.max(1, keepdim=True).values).int().argmax(1))


def test_the_error_of_uniform_directions_is_that_measured_for_the_type_4_shell():
    """.807, of 1 at most 2; and no loss, no parameter."""
    quantizer = Lattice("leech_type4")
    z = torch.nn.functional.normalize(torch.randn(2000, 24, generator=torch.Generator().manual_seed(0)))
    out = quantizer(z)
    assert (out.codes - z).square().sum(1).mean() == pytest.approx(0.807, abs=0.01)
    assert out.losses == {}
    assert not list(quantizer.parameters())
    assert not quantizer.state_dict()


def test_an_unknown_shell_gets_a_line_that_helps():
    with pytest.raises(ValueError, match="did you mean leech"):
        Lattice("leach")
