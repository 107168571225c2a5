"""Every quantizer by name. To add one: a file here, a YAML in configs/quantizer, a line in this table."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from stage1_tokenizer.quantizers.bsq import BSQ
from stage1_tokenizer.quantizers.cvq import CVQ
from stage1_tokenizer.quantizers.diveq import DiVeQ
from stage1_tokenizer.quantizers.fsq import FSQ
from stage1_tokenizer.quantizers.fvq import FVQ
from stage1_tokenizer.quantizers.gmvq import GMVQ
from stage1_tokenizer.quantizers.grit import GRIT
from stage1_tokenizer.quantizers.gumbel import Gumbel
from stage1_tokenizer.quantizers.hqvae import HQVAE
from stage1_tokenizer.quantizers.hqvae_injected import InjectedTopDown
from stage1_tokenizer.quantizers.hypervq import HyperVQ
from stage1_tokenizer.quantizers.ibq import IBQ
from stage1_tokenizer.quantizers.ifsq import IFSQ
from stage1_tokenizer.quantizers.interface import GridQuantizer, PerVectorGrid, Quantizer, QuantizerOutput, on_grid
from stage1_tokenizer.quantizers.lattice import Lattice
from stage1_tokenizer.quantizers.lfq import LFQ
from stage1_tokenizer.quantizers.lgq import LGQ
from stage1_tokenizer.quantizers.lgq_channel import LGQChannel
from stage1_tokenizer.quantizers.lgq_paper import LGQPaper
from stage1_tokenizer.quantizers.multi_scale import MultiScale
from stage1_tokenizer.quantizers.noise_substitution import NoiseSubstitution
from stage1_tokenizer.quantizers.nsvq import NSVQ
from stage1_tokenizer.quantizers.options import one_of
from stage1_tokenizer.quantizers.product import Product
from stage1_tokenizer.quantizers.random_projection import RandomProjection
from stage1_tokenizer.quantizers.residual import Residual
from stage1_tokenizer.quantizers.residual_fsq import ResidualFSQ
from stage1_tokenizer.quantizers.scq import SCQ
from stage1_tokenizer.quantizers.simvq import SimVQ
from stage1_tokenizer.quantizers.softvq import SoftVQ
from stage1_tokenizer.quantizers.sqvae import SQVAE
from stage1_tokenizer.quantizers.transvq import TransVQ
from stage1_tokenizer.quantizers.vaevq import VAEVQ
from stage1_tokenizer.quantizers.vq import VQ
from stage1_tokenizer.quantizers.vq_cosine import VQCosine
from stage1_tokenizer.quantizers.vq_ema import VQEMA
from stage1_tokenizer.quantizers.vq_rotation import VQRotation
from stage1_tokenizer.quantizers.vqwae import VQWAE

__all__ = [
    "QUANTIZERS",
    "GridQuantizer",
    "PerVectorGrid",
    "Quantizer",
    "QuantizerOutput",
    "build_quantizer",
    "on_grid",
]

QUANTIZERS: dict[str, type[Quantizer] | type[GridQuantizer]] = {
    "bsq": BSQ,
    "cvq": CVQ,
    "diveq": DiVeQ,
    "fsq": FSQ,
    "fvq": FVQ,
    "gmvq": GMVQ,
    "grit": GRIT,
    "gumbel": Gumbel,
    "hqvae": HQVAE,
    "hqvae_injected": InjectedTopDown,
    "hypervq": HyperVQ,
    "ibq": IBQ,
    "ifsq": IFSQ,
    "leech": Lattice,
    "lfq": LFQ,
    "lgq": LGQ,
    "lgq_channel": LGQChannel,
    "lgq_paper": LGQPaper,
    "multi_scale": MultiScale,
    "noise_substitution": NoiseSubstitution,
    "nsvq": NSVQ,
    "product": Product,
    "random_projection": RandomProjection,
    "residual": Residual,
    "residual_fsq": ResidualFSQ,
    "scq": SCQ,
    "simvq": SimVQ,
    "softvq": SoftVQ,
    "sqvae": SQVAE,
    "transvq": TransVQ,
    "vaevq": VAEVQ,
    "vq": VQ,
    "vq_cosine": VQCosine,
    "vq_ema": VQEMA,
    "vq_rotation": VQRotation,
    "vqwae": VQWAE,
}


def build_quantizer(name: str, **options: Any) -> Quantizer | GridQuantizer:
    """The quantizer of that name; the options are its constructor's arguments, and for most `dim` and `codebook_size`.

    A method that decides its own dim (FSQ: one channel per level) takes no `dim`: read `input_dim` and `dim` afterwards.
    A quantizer made of others takes theirs as a mapping of name and options, `base: {name: vq_ema, ...}`.
    Raises ValueError for an unknown name, an unknown or missing option, or a value that the method refuses.
    """
    kind = QUANTIZERS[one_of("quantizer.name", name, QUANTIZERS)]
    parameters = inspect.signature(kind).parameters
    for option in options:
        one_of(f"quantizer: option of {name}", option, parameters)
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in options]
    if missing:
        raise ValueError(f"quantizer.{missing[0]}: {name} needs it; give quantizer.{missing[0]}=...")
    return kind(**{key: _nested(f"quantizer.{key}", value) for key, value in options.items()})


def _nested(place: str, value: Any) -> Any:
    """A mapping becomes what builds that quantizer; anything else stays."""
    if not isinstance(value, Mapping):
        return value
    if "name" not in value:
        raise ValueError(f"{place}: {dict(value)} has no name; give one of {', '.join(sorted(QUANTIZERS))}")
    return functools.partial(build_quantizer, **value)
