"""The autoregressive prior as a causal language model of transformers: a class, then the codes of an image.

The vocabulary is the K codes, then the C classes, then the null class. An image is its class and its t codes:

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
    ids = model.generate(torch.tensor([[model.config.class_id(207)]]))         # "b 1+t"; tokens are ids[:, 1:, None]

`generate` works every sequence out anew at each step, without a cache: it is for trying, comparing and for other people's
tools. `AutoregressivePrior.sample` keeps keys and values, guides, and gives a seed its own image.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from pipeline.core.errors import UserError
from pipeline.core.files import write_text
from stage2_prior.autoregressive import AutoregressivePrior
from stage2_prior.transformer import Transformer, rotary_tables

MODULE = "modeling_image_tokens"
CODE = '''"""Lets transformers load this folder by itself, with the package lgq-pipeline installed:

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
"""

try:
    from stage2_prior.causal_lm import ImageTokensConfig, ImageTokensForCausalLM
except ImportError as error:
    raise ImportError("this folder needs the package lgq-pipeline") from error
'''


class ImageTokensConfig(PreTrainedConfig):
    """`prior`: the arguments of AutoregressivePrior, whose tokens have one index each."""

    model_type = "lgq_image_tokens"

    def __init__(self, prior: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self.prior = dict(prior or {})
        sizes, classes = self.prior.get("sizes", [0]), self.prior.get("num_classes", 0)
        if len(sizes) != 1:
            raise UserError(f"transformers: a language model draws one index at a time, these tokens have {len(sizes)}")
        kwargs["vocab_size"] = sizes[0] + classes + 1
        super().__init__(**kwargs)

    @property
    def codes(self) -> int:
        """How many codes there are: the smaller ids."""
        return self.prior["sizes"][0]

    def class_id(self, label: int | None) -> int:
        """The id that stands for a class; None: for no class in particular."""
        return self.codes + (self.prior["num_classes"] if label is None else label)


class ImageTokensForCausalLM(PreTrainedModel, GenerationMixin):
    """AutoregressivePrior behind the interface of a causal language model; a saved one needs no tokenizer of text."""

    config_class = ImageTokensConfig
    config: ImageTokensConfig
    base_model_prefix = "prior"
    main_input_name = "input_ids"

    def __init__(self, config: ImageTokensConfig) -> None:
        super().__init__(config)
        self.prior = AutoregressivePrior(**config.prior)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """What is not saved: the tables of the rotary positions. The parts draw their own weights when they are made."""
        if isinstance(module, Transformer):
            tables = rotary_tables(self.prior.spec.scales, module.shape, module.prefix)
            module.cos.copy_(tables[0])
            module.sin.copy_(tables[1])

    def forward(
        self,
        input_ids: Int[Tensor, "b n"],
        attention_mask: Bool[Tensor, "b n"] | Int[Tensor, "b n"] | None = None,
        labels: Int[Tensor, "b n"] | None = None,
        **unused: Any,
    ) -> CausalLMOutput:
        """Logits of what follows each id, all other ids than codes at the lowest finite number; at a last code all codes alike.

        labels: as usual the ids again, -100 where they do not count; the class is never scored.
        """
        codes, length, (b, n) = self.config.codes, self.prior.spec.t, input_ids.shape
        if not 1 <= n <= length + 1 or (input_ids < 0).any() or (input_ids >= self.config.vocab_size).any():
            raise UserError(f"transformers: give 1 to {length + 1} ids from 0 to {self.config.vocab_size - 1}")
        if attention_mask is not None and not attention_mask.all():
            raise UserError("transformers: a masked id; sequences of image tokens are equally long, without padding")
        classes, tokens = input_ids[:, 0] - codes, input_ids[:, 1:length, None]
        if (classes < 0).any() or (input_ids[:, 1:] >= codes).any():
            raise UserError(f"transformers: give a class (id {codes} or more), then up to {length} codes below {codes}")
        features = self.prior.trunk(self.prior.codes.embed(tokens), classes)
        everywhere = torch.arange(features[..., 0].numel(), device=features.device)
        known = self.prior.codes.logits(features)(0, everywhere, everywhere.new_empty(len(everywhere), 0)).view(b, -1, codes)
        logits = known.new_full((b, n, self.config.vocab_size), torch.finfo(known.dtype).min)
        logits[..., :codes] = F.pad(known, (0, 0, 0, n - known.shape[1]))
        loss = None if labels is None else F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)  # pyright: ignore[reportArgumentType]

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """The whole sequence at each step: its first id is the class, which all layers need."""
        return {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask")}


def as_causal_lm(prior: AutoregressivePrior) -> ImageTokensForCausalLM:
    """The same weights as a language model; UserError for tokens of several indices."""
    arguments = {name: value for name, value in prior.config.items() if not name.startswith("_")}
    config = ImageTokensConfig(arguments)
    config.auto_map = {  # pyright: ignore[reportAttributeAccessIssue]
        "AutoConfig": f"{MODULE}.{ImageTokensConfig.__name__}",
        "AutoModelForCausalLM": f"{MODULE}.{ImageTokensForCausalLM.__name__}",
    }
    model = ImageTokensForCausalLM(config)
    model.prior.load_state_dict(prior.state_dict())
    length = prior.spec.t
    whole = {"top_k": 0, "top_p": 1.0, "temperature": 1.0}  # the prior's own distribution; transformers would take the 50 best
    model.generation_config = GenerationConfig(
        do_sample=True, max_new_tokens=length, min_new_tokens=length, use_cache=False, **whole
    )
    return model.to(prior.device, prior.dtype).eval()  # pyright: ignore[reportArgumentType, reportCallIssue]


def save_transformers(prior: AutoregressivePrior, folder: str | Path) -> None:
    """Write a folder that AutoModelForCausalLM loads by itself; UserError for tokens of several indices."""
    as_causal_lm(prior).save_pretrained(folder)
    write_text(Path(folder) / f"{MODULE}.py", CODE)
