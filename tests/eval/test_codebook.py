"""Inside a codebook: the Gersho slope of quantizers whose density is known, the dimension of known sets, the projection."""

import math

import numpy as np
import pytest
import torch

from eval.codebook import geometry, gersho_slope, intrinsic_dimension


def normal(n, dim, seed, deviation=1.0):
    return deviation * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_optimal_scalar_quantizer_of_a_gaussian():
    # its codes have the density f^(1/3): that of a Gaussian with three times the variance (Panter & Dite 1951)
    quantiles = torch.linspace(0.5 / 256, 1 - 0.5 / 256, 256, dtype=torch.float64)
    codes = math.sqrt(3) * torch.special.ndtri(quantiles)[:, None]
    inner = codes[codes.abs().flatten() < 2.5]  # where 20,000 latents show their density
    found = gersho_slope(normal(20_000, 1, 0), inner)
    assert found is not None
    assert found.dimension == pytest.approx(1, abs=0.05)
    assert found.expected == pytest.approx(-1 / 3, abs=0.02)
    assert found.slope == pytest.approx(-1 / 3, abs=0.04)


@pytest.mark.parametrize("dim", [2, 4])
def test_codes_of_the_optimal_density_have_the_expected_slope(dim):
    # f^(m / (m + 2)) of a Gaussian: a Gaussian of (m + 2) / m times the variance
    codes = normal(1500, dim, 1, math.sqrt((dim + 2) / dim))
    near = codes[codes.square().sum(1) < 3 * dim]
    found = gersho_slope(normal(30_000, dim, 2), near)
    assert found is not None
    assert found.dimension == pytest.approx(dim, rel=0.07)
    assert found.slope == pytest.approx(-dim / (dim + 2), abs=0.12)


def test_uniform_cells_have_slope_zero_and_codes_drawn_from_the_latents_minus_one():
    latents = normal(20_000, 2, 3)
    side = torch.linspace(-2, 2, 30, dtype=torch.float64)
    uniform = gersho_slope(latents, torch.cartesian_prod(side, side))
    drawn = gersho_slope(latents, normal(1500, 2, 4))
    assert uniform is not None and drawn is not None
    assert abs(uniform.slope) < 0.2  # not 0: codes at the border have fewer neighbours
    assert drawn.slope == pytest.approx(-1, abs=0.15)


def test_the_slope_does_not_depend_on_the_unit():
    latents, codes = normal(2000, 3, 5), normal(200, 3, 6)
    first, second = gersho_slope(latents, codes), gersho_slope(1000 * latents, 1000 * codes)
    assert first is not None and second is not None
    assert first.slope == pytest.approx(second.slope) and first.dimension == pytest.approx(second.dimension)


def test_few_codes_or_equal_ones_have_no_slope():
    assert gersho_slope(normal(500, 2, 7), normal(10, 2, 8)) is None
    assert gersho_slope(normal(500, 2, 7), torch.zeros(100, 2, dtype=torch.float64)) is None


def test_the_dimension_is_that_of_the_set_and_not_of_the_space():
    plane = normal(4000, 2, 9) @ normal(2, 8, 10)
    sphere = torch.nn.functional.normalize(normal(4000, 3, 11), dim=1) @ normal(3, 8, 12)
    assert intrinsic_dimension(plane) == pytest.approx(2, abs=0.15)
    assert intrinsic_dimension(sphere) == pytest.approx(2, abs=0.15)


def test_geometry_is_the_main_plane_of_the_latents():
    latents = normal(3000, 5, 13) * torch.tensor([5.0, 3.0, 0.1, 0.1, 0.1])
    codes = latents[:1400:2] + 0.0
    found = geometry(latents, codes, torch.arange(700))
    points = np.array(found["codes"])
    assert len(found["latents"]) == 800 and found["count"] == list(range(700))
    assert points.std(0) == pytest.approx([5, 3], rel=0.1)
    centred = (codes - latents.mean(0)).numpy()[:, :2]
    np.testing.assert_allclose(np.abs(points), np.abs(centred), atol=0.3)  # the plane of the first two axes
    assert found["codes"][1] == found["latents"][2]  # the same point


def test_a_slope_is_known_as_well_as_it_says_or_not_at_all():
    """Codes drawn as the latents are have the slope -1; of few codes in many dimensions it is not known."""
    found = [gersho_slope(normal(6000, 2, 10 + 2 * seed), normal(200, 2, 11 + 2 * seed)) for seed in range(16)]
    slopes = torch.tensor([slope.slope for slope in found if slope])
    errors = torch.tensor([slope.standard_error for slope in found if slope])
    assert len(slopes) > 10 and 2.26 * errors.max() <= 0.3
    assert (slopes.std() / errors.mean()).item() < 1.6
    assert gersho_slope(normal(2000, 8, 90), normal(20, 8, 91)) is None
