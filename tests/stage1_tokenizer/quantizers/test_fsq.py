"""FSQ against vector-quantize-pytorch and its own bijection."""

import math

import pytest
import torch
import vector_quantize_pytorch

from stage1_tokenizer.quantizers.fsq import FSQ, LEVELS

SEVERAL = [(8, 5, 5, 5), (7, 5, 5, 5, 5), (3, 4, 9), (16, 8)]
EVERY = [*SEVERAL, (2, 3, 2)]


@pytest.mark.parametrize("levels", SEVERAL)
def test_agrees_with_the_authors_port_in_value_and_gradient(levels):
    z = 2 * torch.randn(300, len(levels), generator=torch.Generator().manual_seed(0))
    mine, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    out = FSQ(levels)(mine)
    codes, indices = vector_quantize_pytorch.FSQ(list(levels))(theirs[None])
    assert torch.equal(out.indices[:, 0], indices[0].long())
    torch.testing.assert_close(out.codes, codes[0])
    weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    (out.codes * weights).sum().backward()
    (codes[0] * weights).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("levels", EVERY)
def test_every_index_has_its_own_code_and_every_code_can_be_reached(levels):
    fsq = FSQ(levels)
    everything = torch.arange(math.prod(levels))[:, None]
    codes = fsq.dequantize(everything)
    assert len(codes.unique(dim=0)) == len(everything) == fsq.sizes[0]
    half = (fsq.level - 1) * (1 + 1e-3) / 2
    offset = (fsq.level % 2 == 0) / 2
    before_bound = ((codes * fsq.unit + offset) / half).atanh() - (offset / half).atanh()
    assert torch.equal(fsq(before_bound).indices, everything)


@pytest.mark.parametrize("size", [1e6, -1e6, 30.0, -30.0, 0.0])
def test_no_input_leaves_the_range(size):
    for levels in EVERY:
        out = FSQ(levels)(torch.full((1, len(levels)), size))
        assert 0 <= out.indices.item() < math.prod(levels)
        assert out.codes.abs().max() <= 1


def test_a_budget_chooses_the_published_levels():
    assert FSQ(codebook_size=1024).sizes == (1000,)
    for size, levels in LEVELS.items():
        assert 0.9 < math.prod(levels) / size < 1.1
