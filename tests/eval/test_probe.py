"""The linear probe."""

import torch

from eval.probe import fit_probe


def clouds(n, seed, spread):
    """Four Gaussian clouds in ten dimensions; the label is the cloud."""
    centers = 3 * torch.eye(4, 10)
    labels = torch.arange(n) % 4
    return centers[labels] + spread * torch.randn(n, 10, generator=torch.Generator().manual_seed(seed)), labels


def accuracy(probe, features, labels):
    return (probe.predict(features) == labels).double().mean().item()


def test_it_learns_what_is_linear_and_generalises():
    features, labels = clouds(400, 0, spread=0.7)
    probe = fit_probe(features, labels, 4)
    assert accuracy(probe, *clouds(400, 1, spread=0.7)) > 0.95


def test_it_is_at_chance_where_labels_mean_nothing():
    features, _ = clouds(2000, 2, spread=1.0)
    labels = torch.randint(0, 4, (2000,), generator=torch.Generator().manual_seed(3))
    fresh, _ = clouds(2000, 4, spread=1.0)
    assert abs(accuracy(fit_probe(features, labels, 4), fresh, labels) - 0.25) < 0.06


def test_scale_and_offset_of_a_feature_do_not_matter():
    features, labels = clouds(300, 5, spread=1.5)
    fresh, _ = clouds(300, 6, spread=1.5)
    scale, offset = torch.linspace(0.1, 50, 10), torch.linspace(-9, 9, 10)
    plain, scaled = fit_probe(features, labels, 4), fit_probe(features * scale + offset, labels, 4)
    agreement = (plain.predict(fresh) == scaled.predict(fresh * scale + offset)).double().mean()
    assert agreement > 0.99


def test_repeats_exactly():
    features, labels = clouds(100, 7, spread=1.0)
    assert torch.equal(fit_probe(features, labels, 4).weight, fit_probe(features, labels, 4).weight)
