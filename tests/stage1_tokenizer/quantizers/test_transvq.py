"""TransVQ: linear attention written out, and one chosen code that moves all."""

import torch

from stage1_tokenizer.quantizers.mapped_codebook import linear_attention
from stage1_tokenizer.quantizers.transvq import TransVQ


def make():
    torch.manual_seed(0)
    return TransVQ(3, 11, width=8, heads=2).double(), torch.randn(1, 3, dtype=torch.float64)


def test_linear_attention_equals_the_dense_kernel():
    q, k, v = torch.randn(3, 2, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = (torch.nn.functional.elu(q) + 1) @ (torch.nn.functional.elu(k) + 1).transpose(1, 2)
    expected = (kernel / kernel.sum(2, keepdim=True)) @ v
    torch.testing.assert_close(linear_attention(q, k, v), expected, rtol=1e-5, atol=1e-6)


def test_the_book_is_that_written_out():
    """With one head: x = P_in B + pos, x += W_o A(LN x), x += MLP(LN x), E = P_out LN(x); A attends by elu + 1."""
    torch.manual_seed(0)
    quantizer = TransVQ(3, 11, width=8).double()
    weight, norm = quantizer.get_parameter, torch.nn.functional.layer_norm
    x = quantizer.frozen @ weight("inward.weight").T + quantizer.positions
    q, k, v = (norm(x, (8,)) @ weight("blocks.0.to_qkv.weight").T).split(8, 1)
    kernel = (torch.nn.functional.elu(q) + 1) @ (torch.nn.functional.elu(k) + 1).T
    x = x + kernel / kernel.sum(1, keepdim=True) @ v @ weight("blocks.0.from_heads.weight").T
    hidden = norm(x, (8,)) @ weight("blocks.0.mlp.1.weight").T + weight("blocks.0.mlp.1.bias")
    x = x + torch.nn.functional.gelu(hidden) @ weight("blocks.0.mlp.3.weight").T + weight("blocks.0.mlp.3.bias")
    expected = norm(x, (8,)) @ weight("outward.1.weight").T
    torch.testing.assert_close(quantizer.book(), expected, rtol=1e-5, atol=1e-6)


def test_search_codes_and_losses_are_those_of_vq_on_the_book():
    quantizer, z = make()
    z = z + torch.randn(30, 3, dtype=torch.float64)
    book = quantizer.book()
    distances = (z[:, None] - book[None]).square().sum(-1)
    out = quantizer(z)
    assert torch.equal(out.indices[:, 0], distances.argmin(1))
    assert torch.equal(quantizer.dequantize(out.indices), out.codes)
    torch.testing.assert_close(sum(out.losses.values()), 1.25 * distances.min(1).values.mean() / 3)


def test_one_chosen_code_moves_all():
    quantizer, z = make()
    before = quantizer.book().detach()
    quantizer(z).losses["codebook"].backward()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    assert ((quantizer.book() - before) != 0).any(1).all()
    assert "frozen" not in dict(quantizer.named_parameters())


def test_a_code_depends_on_all_rows_so_the_chosen_rows_alone_would_not_do():
    quantizer, _ = make()
    before = quantizer.book().detach()
    quantizer.frozen[5] += 1
    assert ((quantizer.book() - before) != 0).any(1).all()
