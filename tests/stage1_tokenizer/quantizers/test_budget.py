"""Equal budgets for every registered quantizer."""

import re
from pathlib import Path

import pytest
import yaml

from stage1_tokenizer.quantizers import QUANTIZERS, build_quantizer
from stage1_tokenizer.quantizers.budget import bits_per_position, equal_bits

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("bits", [8, 10, 14])
@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_every_quantizer_answers_within_a_tenth_of_a_bit_or_says_why_not(name, bits):
    try:
        options = equal_bits(name, bits)
    except ValueError as error:
        assert re.search(r"equal_bits: \w+ (cannot spend|refuses|has no option).* ", str(error))
        return
    assert abs(bits_per_position(build_quantizer(name, **options)) - bits) <= 0.1


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_it_keeps_the_shipped_options(name):
    shipped = yaml.safe_load((ROOT / "configs" / "quantizer" / f"{name}.yaml").read_text())
    spends = bits_per_position(build_quantizer(**shipped), (8, 8))
    del shipped["name"]
    options = equal_bits(name, spends, shipped, (8, 8))
    several = ("levels", "base")  # other levels spend as much, and a base is written out
    assert options == shipped | {key: options[key] for key in several if key in shipped}
    assert bits_per_position(build_quantizer(name, **options), (8, 8)) == pytest.approx(spends, abs=0.1)


@pytest.mark.parametrize(
    ("name", "bits", "options"),
    [  # the table of the equal-budget rules
        ("vq", 14, {"codebook_size": 16384}),
        ("fsq", 10, {"levels": [8, 5, 5, 5]}),
        ("fsq", 14, {"levels": [8, 8, 8, 6, 5]}),
        ("lgq_channel", 16, {"levels": [8, 8, 8, 5, 5, 5]}),
        ("lfq", 18, {"bits": 18}),
        ("hqvae", 10, {"codebook_size": 32}),
        ("leech", 17.6, {"shell": "leech"}),
        ("residual_fsq", 10, {"stages": 2}),
    ],
)
def test_the_table(name, bits, options):
    answer = equal_bits(name, bits)
    assert {key: answer[key] for key in options} == options


def test_parts_share_the_budget():
    assert equal_bits("product", 14, {"groups": 2})["base"]["codebook_size"] == 128
    assert equal_bits("residual", 10, {"depth": 2})["base"]["codebook_size"] == 32
    assert equal_bits("multi_scale", 14, grid=(16, 16))["base"]["codebook_size"] == 39  # 680 tokens for 256 positions
    nested = equal_bits("product", 12, {"groups": 2, "base": {"name": "residual", "depth": 3}})
    assert nested["base"]["base"]["codebook_size"] == 4


def test_what_cannot_be_spent_is_an_error_with_the_nearest_number():
    with pytest.raises(ValueError, match=r"leech cannot spend 12\.2 bits per position; the nearest is 12\.08"):
        equal_bits("leech", 12.2)
    with pytest.raises(ValueError, match="at most 1048576 codes"):
        equal_bits("vq", 36)
    assert equal_bits("bsq", 36)["bits"] == 36
