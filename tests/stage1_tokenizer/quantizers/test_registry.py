"""Building by name: what a typo gets."""

import pytest

from stage1_tokenizer.quantizers import build_quantizer
from stage1_tokenizer.quantizers.lgq import LGQ


def test_builds_by_name():
    quantizer = build_quantizer("lgq", dim=3, codebook_size=5)
    assert isinstance(quantizer, LGQ)
    assert (quantizer.dim, quantizer.input_dim, quantizer.sizes) == (3, 3, (5,))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lqg", {}, "did you mean lgq"),
        ("nothing_like_it", {}, "known: .*fsq"),
        ("vq", {"dim": 2, "codebook_sise": 4}, "did you mean codebook_size"),
        ("vq", {"dim": 2}, "quantizer.codebook_size: vq needs it"),
        ("vq", {"dim": 0, "codebook_size": 4}, "dim is 0"),
        ("vq", {"dim": 2, "codebook_size": 4.0}, "codebook_size is 4.0"),
        ("fsq", {"dim": 4, "levels": [4, 4]}, "option of fsq: 'dim' is unknown"),
        ("fsq", {"codebook_size": 1000}, "1024"),
        ("fsq", {}, "either levels or codebook_size"),
        ("fsq", {"levels": [4, 1]}, "at least 2"),
        ("lgq", {"dim": 2, "codebook_size": 4, "schedule": "cubic"}, "known: .*geometric"),
        ("lgq", {"dim": 2, "codebook_size": 4, "start": "kmean"}, "kmeans"),
    ],
)
def test_a_mistake_gets_a_line_that_helps(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_quantizer(name, **options)
