"""What holds for every quantizer: the registry and the shipped configurations supply the cases."""

from pathlib import Path

import pytest
import torch
import yaml

from stage1_tokenizer.quantizers import QUANTIZERS, build_quantizer, on_grid

CONFIGS = {path.stem: path for path in (Path(__file__).parents[3] / "configs" / "quantizer").glob("*.yaml")}
BATCH, GRID = 12, (4, 3)


def shipped(name):
    torch.manual_seed(0)
    return on_grid(build_quantizer(**yaml.safe_load(CONFIGS[name].read_text())))


def latents(quantizer, batch=BATCH, grid=GRID, seed=1):
    """Latents with structure, as an encoder gives them: a few directions, then noise."""
    draw = torch.Generator().manual_seed(seed)
    c = quantizer.input_dim
    mixing = torch.randn(min(3, c), c, generator=torch.Generator().manual_seed(0))
    smooth = torch.randn(batch, *grid, len(mixing), generator=draw) @ mixing / len(mixing) ** 0.5
    return smooth + 0.3 * torch.randn(batch, *grid, c, generator=draw)


def backward(quantizer, z):
    """Forward and backward in train mode, as a decoder's random gradient and the losses make it."""
    z = z.clone().requires_grad_()
    quantizer.zero_grad()
    out = quantizer.train()(z)
    cotangent = torch.randn(out.codes.shape, generator=torch.Generator().manual_seed(2)).to(z)
    ((out.codes * cotangent).mean() + sum(out.losses.values())).backward()
    assert z.grad is not None
    return out, z.grad


@pytest.fixture(params=sorted(QUANTIZERS))
def name(request):
    if request.param not in CONFIGS:
        pytest.fail(f"no configs/quantizer/{request.param}.yaml")
    return request.param


@pytest.fixture(params=[0.0, 0.5, 1.0])
def quantizer(request, name):
    """The shipped one after a start from data and one step, at the beginning, middle and end of its schedules."""
    quantizer = shipped(name)
    z = latents(quantizer)
    quantizer.initialize(z)
    quantizer.anneal(request.param)
    quantizer.train()(z)
    quantizer.anneal(request.param)
    return quantizer


@pytest.fixture
def z(quantizer):
    return latents(quantizer)


def test_registry_and_configurations_are_the_same():
    assert set(CONFIGS) == set(QUANTIZERS)
    for name, path in CONFIGS.items():
        assert yaml.safe_load(path.read_text())["name"] == name


@pytest.mark.parametrize("training", [True, False])
def test_shapes_types_and_ranges(quantizer, z, training):
    out = quantizer.train(training)(z)
    assert out.codes.shape == (BATCH, *GRID, quantizer.dim)
    assert out.codes.dtype == z.dtype
    assert out.codes.isfinite().all()
    assert out.indices.dtype == torch.int64
    assert out.indices.shape == (BATCH, sum(h * w for h, w in quantizer.scales(GRID)), len(quantizer.sizes))
    assert (out.indices >= 0).all()
    assert (out.indices < torch.tensor(quantizer.sizes)).all()
    assert out.indices.unique().numel() > 1
    assert training or out.further == ()
    assert all(codes.shape == out.codes.shape and codes.isfinite().all() for codes in out.further)


@pytest.mark.parametrize("grid", [(4, 3), (2, 6), (1, 1)])
def test_the_last_scale_is_the_grid_and_any_grid_comes_back(quantizer, grid):
    quantizer.eval()
    out = quantizer(latents(quantizer, batch=2, grid=grid))
    assert quantizer.scales(grid)[-1] == grid
    assert out.indices.shape[1] == sum(h * w for h, w in quantizer.scales(grid))
    assert torch.equal(out.codes, quantizer.dequantize(out.indices, grid))


def test_losses_are_finite_scalars_with_fixed_names_and_none_in_eval_mode(quantizer, z):
    losses = quantizer.train()(z).losses
    for name, loss in losses.items():
        assert isinstance(name, str)
        assert name
        assert loss.shape == ()
        assert loss.isfinite(), name
    assert quantizer(z).losses.keys() == losses.keys()
    assert quantizer.eval()(z).losses == {}


def test_eval_codes_are_those_of_the_indices_bit_for_bit(quantizer, z):
    out = quantizer.eval()(z)
    assert torch.equal(out.codes, quantizer.dequantize(out.indices, GRID))


def test_codes_resemble_their_own_vectors(quantizer, z):
    codes = quantizer.eval()(z).codes
    codes = (codes - codes.mean((0, 1, 2))).flatten(1)
    own = (z[..., : quantizer.dim] - z[..., : quantizer.dim].mean((0, 1, 2))).flatten(1)
    likeness = torch.nn.functional.normalize(codes) @ torch.nn.functional.normalize(own).T
    others = likeness[~torch.eye(BATCH, dtype=torch.bool)]
    assert likeness.diagonal().mean() > others.mean() + 0.3


def test_eval_repeats_and_changes_nothing(quantizer, z):
    quantizer.eval()
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    first, second = quantizer(z), quantizer(z)
    assert torch.equal(first.indices, second.indices)
    assert torch.equal(first.codes, second.codes)
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())


def test_images_do_not_see_each_other(quantizer, z):
    quantizer.eval()
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(3))
    indices = quantizer(z).indices
    assert torch.equal(quantizer(z[order]).indices, indices[order])
    assert torch.equal(torch.cat([quantizer(image[None]).indices for image in z]), indices)


def test_layout_does_not_matter(quantizer, z):
    quantizer.eval()
    channels_first = z.permute(0, 3, 1, 2).contiguous()
    assert torch.equal(quantizer(channels_first.permute(0, 2, 3, 1)).indices, quantizer(z).indices)


def test_gradient_reaches_every_vector_and_parameter(quantizer, z):
    # the start put codes on these very vectors: one that lies on its code, far from all others, has no gradient to get
    _, gradient = backward(quantizer, z + 0.05 * latents(quantizer, seed=3))
    assert gradient.isfinite().all()
    assert (gradient != 0).any(-1).all()
    for name, parameter in quantizer.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert (parameter.grad != 0).any(), name


def test_anneal_twice_is_anneal_once(quantizer, z):
    quantizer.train()(z)
    quantizer.anneal(0.7)
    state = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer.anneal(0.7)
    assert all(torch.equal(value, state[key]) for key, value in quantizer.state_dict().items())


def test_saving_and_loading_keeps_indices_and_losses(name, quantizer, z):
    other = shipped(name)
    other.load_state_dict({key: value.clone() for key, value in quantizer.state_dict().items()})
    for training in (False, True):
        torch.manual_seed(4)
        mine = quantizer.train(training)(z)
        torch.manual_seed(4)
        theirs = other.train(training)(z)
        assert torch.equal(mine.indices, theirs.indices)
        assert all(torch.equal(loss, theirs.losses[key]) for key, loss in mine.losses.items())


def test_training_goes_on_from_a_saved_state_bit_for_bit(name, quantizer, z):
    """After a forward whose statistics anneal has not applied yet, which is where a loop saves."""
    other = shipped(name)
    quantizer.train()(z)
    other.load_state_dict({key: value.clone() for key, value in quantizer.state_dict().items()})
    for part in (quantizer, other):
        torch.manual_seed(4)
        for seed in (5, 6):
            part.anneal(0.8)
            part.train()(latents(part, seed=seed))
    buffers = dict(other.named_buffers())
    assert all(torch.equal(value, buffers[key]) for key, value in quantizer.named_buffers())
    assert all(torch.equal(*pair) for pair in zip(quantizer.parameters(), other.parameters(), strict=True))


def test_one_vector_suffices(quantizer):
    z = latents(quantizer, batch=1, grid=(1, 1))
    _, gradient = backward(quantizer, z)
    quantizer.anneal(1.0)
    assert gradient.isfinite().all()
    out = quantizer.eval()(z)
    assert torch.equal(out.codes, quantizer.dequantize(out.indices, (1, 1)))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_vectors_do_no_harm(name, value):
    quantizer = shipped(name)
    z = torch.full((2, *GRID, quantizer.input_dim), value)
    quantizer.initialize(z)
    for progress in (0.0, 0.5, 1.0):
        quantizer.anneal(progress)
        out, gradient = backward(quantizer, z)
        assert all(loss.isfinite() for loss in out.losses.values())
        assert gradient.isfinite().all()
        assert all(p.grad.isfinite().all() for p in quantizer.parameters() if p.grad is not None)
    assert quantizer.eval()(z).codes.isfinite().all()


def test_a_start_from_data_is_optional(name):
    quantizer = shipped(name)
    z = latents(quantizer)
    out, gradient = backward(quantizer, z)
    quantizer.anneal(0.1)
    assert out.codes.isfinite().all()
    assert gradient.isfinite().all()
    assert quantizer.eval()(z).indices.unique().numel() > 1


def test_autocast_changes_no_index(quantizer, z):
    quantizer.eval()
    indices = quantizer(z).indices
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(z).indices, indices)
        assert quantizer.train()(z).codes.dtype == torch.float32


def test_float64_stays_float64(quantizer, z):
    out = quantizer.double().eval()(z.double())
    assert out.codes.dtype == torch.float64
    assert torch.equal(out.codes, quantizer.dequantize(out.indices, GRID))
