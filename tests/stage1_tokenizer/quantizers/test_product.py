"""PQ is its independent blocks, whatever they are."""

import copy

import pytest
import torch
import yaml

from stage1_tokenizer.quantizers import build_quantizer
from stage1_tokenizer.quantizers.product import Product


def make(**base):
    torch.manual_seed(0)
    quantizer = build_quantizer("product", groups=3, base=base)
    assert isinstance(quantizer, Product)
    return quantizer.double(), torch.randn(40, quantizer.input_dim, dtype=torch.float64)


@pytest.mark.parametrize(
    "base",
    [
        {"name": "vq", "dim": 2, "codebook_size": 7},
        {"name": "vq_ema", "dim": 2, "codebook_size": 7},
        {"name": "fsq", "levels": [3, 4]},
        {"name": "residual", "depth": 2, "base": {"name": "vq", "dim": 2, "codebook_size": 7}},
    ],
    ids=lambda base: base["name"],
)
def test_equals_its_blocks_in_value_and_gradient(base):
    quantizer, z = make(**base)
    mine, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    out = quantizer(mine)
    outs = [block(theirs[:, 2 * j : 2 * j + 2]) for j, block in enumerate(quantizer.blocks)]
    assert torch.equal(out.codes, torch.cat([each.codes for each in outs], 1))
    assert torch.equal(out.indices, torch.cat([each.indices for each in outs], 1))
    assert torch.equal(quantizer.dequantize(out.indices), out.codes)
    weights = torch.randn(z.shape, dtype=torch.float64)
    ((out.codes * weights).sum() + sum(out.losses.values())).backward()
    for each, part in zip(outs, weights.chunk(3, 1), strict=True):
        ((each.codes * part).sum() + sum(each.losses.values()) / 3).backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_further_codes_are_joined_as_the_codes_are():
    quantizer, z = make(name="vaevq", dim=2, codebook_size=7)
    blocks = [copy.deepcopy(block) for block in quantizer.blocks]  # which draw the same noise
    (further,) = quantizer(z).further
    parts = [block(part).further[0] for block, part in zip(blocks, z.chunk(3, 1), strict=True)]
    assert torch.equal(further, torch.cat(parts, 1))
    assert quantizer.eval()(z).further == ()


def test_losses_are_means_over_all_channels():
    quantizer, z = make(name="vq", dim=2, codebook_size=7)
    out = quantizer(z)
    torch.testing.assert_close(out.losses["codebook"], (z - out.codes).square().mean())


def test_blocks_start_apart_and_have_sizes_of_their_own():
    quantizer, _ = make(name="vq_ema", dim=2, codebook_size=7)
    assert (quantizer.dim, quantizer.sizes) == (6, (7, 7, 7))
    first, second, _ = (block.state_dict()["codebook"] for block in quantizer.blocks)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("vq_ema", "give a name and options"),
        ({"dim": 2}, "has no name"),
        ({"name": "vq_emma"}, "did you mean vq_ema"),
        ({"name": "vq", "dim": 2}, "codebook_size: vq needs it"),
        ({"name": "multi_scale", "base": {"name": "fsq", "levels": [3]}}, "give a per-vector quantizer"),
    ],
)
def test_a_mistake_in_the_base_gets_a_line_that_helps(base, message):
    with pytest.raises(ValueError, match=message):
        build_quantizer("product", base=base)


def test_the_nested_configuration_is_plain_yaml():
    text = "{name: product, groups: 2, base: {name: product, groups: 2, base: {name: fsq, levels: [5]}}}"
    assert build_quantizer(**yaml.safe_load(text)).sizes == (5, 5, 5, 5)
