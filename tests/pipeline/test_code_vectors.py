"""What a token store says of the codes: for every quantizer in the table a vector per value of each index."""

from __future__ import annotations

import json

import pytest
import torch

from pipeline import tokenization
from pipeline.api import TokenStore, load_tokenizer
from pipeline.core.config import load_config
from pipeline.core.errors import UserError
from pipeline.tokenization import code_vectors
from stage1_tokenizer.backbone import Backbone
from stage1_tokenizer.config import Stage1Config
from stage1_tokenizer.quantizers import QUANTIZERS
from stage1_tokenizer.tokenizer import Tokenizer
from stage2_prior.config import Stage2Config
from stage2_prior.priors import PRIORS
from stage2_prior.training import new_prior


def make(name, *options):
    torch.manual_seed(0)
    config = load_config(Stage1Config, "configs/stage1/demo.yaml", [f"quantizer={name}", *options])
    return Tokenizer.create(16, Backbone(patch=4, channels=(16,), layers=1), config.quantizer).eval()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantizer_has_a_distinct_vector_for_each_value(name):
    tokenizer = make(name)
    tables = code_vectors(tokenizer)
    assert tables is not None and tuple(map(len, tables)) == tokenizer.spec.sizes
    for table in tables:
        assert table.dtype == torch.float32 and table.isfinite().all()
        assert len(table.unique(dim=0)) == len(table)


@pytest.mark.parametrize("name", ["lgq", "vq", "fsq", "lfq", "bsq"])
def test_a_single_index_has_the_codes_themselves(name):
    tokenizer = make(name)
    (table,) = code_vectors(tokenizer) or []
    indices = torch.randint(tokenizer.spec.sizes[0], (2, 16, 1))
    assert table[indices[..., 0]].equal(tokenizer.quantizer.dequantize(indices, (4, 4)).flatten(1, 2))


@pytest.mark.parametrize(
    "name, options",
    [("residual", []), ("residual_fsq", []), ("product", []), ("lfq", ["quantizer.bits=12", "quantizer.group_bits=4"])],
)
def test_several_indices_add_up_to_the_code(name, options):
    """Up to one offset for all codes; a product's and a group's vectors have the channels that are theirs only."""
    tokenizer = make(name, *options)
    tables = code_vectors(tokenizer)
    assert tables is not None and len(tables) > 1
    indices = torch.stack([torch.randint(size, (1, 16)) for size in tokenizer.spec.sizes], dim=-1)
    codes = tokenizer.quantizer.dequantize(indices, (4, 4)).flatten(0, 2)
    parts = [table[indices[0, :, j]] for j, table in enumerate(tables)]
    separate = sum(table.shape[1] for table in tables) == tokenizer.quantizer.dim
    assert separate == (name in ("product", "lfq"))
    together = torch.cat(parts, dim=1) if separate else torch.stack(parts).sum(0)
    torch.testing.assert_close(together - together[0], codes - codes[0], rtol=1e-5, atol=1e-6)


def test_tables_beyond_reason_are_left_out(monkeypatch):
    monkeypatch.setattr(tokenization, "LARGEST_TABLES", 1024 * 8)
    assert code_vectors(make("lgq")) is not None and code_vectors(make("ibq")) is None


@pytest.mark.parametrize("head", ["codebook", "geometric"])
@pytest.mark.parametrize("prior", PRIORS)
def test_a_prior_is_made_of_the_codes_in_its_store(chain, runs, prior, head):
    identity = runs.tokens / "identity.json"
    described = json.loads(identity.read_text())
    described["spec"]["scales"] = [[1, 1], [1, 3], [3, 4]]  # the same sixteen tokens, in as many scales as any prior needs
    identity.write_text(json.dumps(described))
    settings = [f"prior={prior}", f"prior.head={head}", "prior.size=nano", "run=x", f"tokens={runs.tokens}", "images=1"]
    config = load_config(Stage2Config, None, settings)
    codebook = load_tokenizer(chain.tokenizer).quantizer.dequantize(torch.arange(16)[:, None, None], (1, 1)).flatten(0, 2)
    vectors = new_prior(config, TokenStore(runs.tokens)).codes.codes(0)[0]
    centred = codebook - codebook.mean(0)
    torch.testing.assert_close(vectors, centred / centred.square().mean().sqrt())
    (runs.tokens / "codebook.safetensors").unlink()
    with pytest.raises(UserError, match="tokenize again, or use head=tied"):
        new_prior(config, TokenStore(runs.tokens))
