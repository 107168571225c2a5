"""The settings of a tokenizer's training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.core.config import require_between
from pipeline.core.launch import Precision, Tracker
from pipeline.core.schedule import LARGEST, require_adamw
from stage1_tokenizer.backbone import Backbone

LARGEST_IMAGE = 8192


@dataclass(frozen=True)
class Loss:
    """L1 (weight 1) + perceptual + adversarial loss; the quantizer adds its own terms.

    perceptual:        the network: LPIPS-VGG, EfficientNet-Lite0's features (small images enlarged, or native), or none.
    gan_weight:        of the adversarial loss, times VQGAN's adaptive weight; 0 leaves the discriminator out.
    gan_start:         share of the training after which the adversarial loss sets in; its discriminator learns a bit earlier.
    vf_weight:         of the alignment of the latents with the vision network's features (published: 0.1); 0 leaves it out.
    vf_adaptive:       whether it is multiplied by the ratio of the gradients of pictures and alignment at the encoder's end.
    vf_margins:        m1 of the cosines, m2 of the pairs' similarities.
    distillation_weight: of the squared difference between a thawed pretrained encoder's features and the published one's.
    thaw:              share of the training after which a pretrained encoder learns (VQRAE: 100 k steps of 170 k).
    """

    perceptual: Literal["lpips", "efficientnet_lite0", "efficientnet_lite0_native", "none"] = "efficientnet_lite0"
    perceptual_weight: float = 1.0
    gan_weight: float = 0.1
    gan_start: float = 0.5
    discriminator_channels: int = 64
    discriminator_layers: int = 3
    discriminator_lr: float = 1e-4
    vf_weight: float = 0.0
    vf_adaptive: bool = True
    vf_margins: tuple[float, ...] = (0.5, 0.25)
    distillation_weight: float = 1.0
    thaw: float = 0.59

    def __post_init__(self) -> None:
        if len(self.vf_margins) != 2:
            raise ValueError(f"vf_margins: {list(self.vf_margins)}; give two, for example [0.5, 0.25]")
        weights = ("perceptual_weight", "gan_weight", "vf_weight", "distillation_weight", "discriminator_lr")
        require_between(self, **dict.fromkeys(weights, (0, LARGEST)))
        require_between(self, gan_start=(0, 1), thaw=(0, 1), discriminator_channels=(1, 4096), discriminator_layers=(1, 16))
        require_between(self, vf_margins=(-2, 2))


@dataclass(frozen=True)
class Optim:
    """AdamW with a linear warm-up and a cosine to `final_lr` x `lr`; `warmup` in images; `clip` the gradient's norm.

    quantizer_lr: factor on the rate of the quantizer's parameters. Codes must keep up with the latents, which move by far more
                  than `lr` per step: over a few thousand steps 10 is worth 0.6 dB, over long trainings it matters less.
    encoder_lr:   factor on the rate of a pretrained encoder (VQRAE's second stage: 1e-5 beside 1e-4).
    max_bad_steps: steps in a row whose loss or gradient is not finite, all left out, after which the training stops.
    """

    lr: float = 1e-4
    quantizer_lr: float = 1.0
    encoder_lr: float = 0.1
    warmup: int = 10_000
    final_lr: float = 0.1
    betas: tuple[float, ...] = (0.9, 0.99)
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.999
    max_bad_steps: int = 10

    def __post_init__(self) -> None:
        require_adamw(self)
        require_between(self, quantizer_lr=(0, LARGEST), encoder_lr=(0, LARGEST))


@dataclass(frozen=True)
class Stage1Config:
    """A tokenizer's training. All intervals are in images; `batch_size` is that of all processes together.

    micro_batch: images that a process holds activations for at a time (None: its whole share). Smaller ones recompute the
                 encoder and decoder; results are the same, since losses and statistics are those of the global batch.
    vision:      the pretrained network that `backbone.pretrained` makes the encoder, and that `loss.vf_weight` compares with.
    """

    run: str
    images: int
    data: dict[str, Any]
    quantizer: dict[str, Any]
    image_size: int = 256
    flip: bool = True
    seed: int = 0
    batch_size: int = 256
    micro_batch: int | None = None
    precision: Precision = "no"
    backbone: Backbone = field(default_factory=Backbone)
    vision: dict[str, Any] = field(default_factory=lambda: {"name": "efficientnet_lite0"})
    loss: Loss = field(default_factory=Loss)
    optim: Optim = field(default_factory=Optim)
    workers: int = 4
    report_every: int = 10_000
    snapshot_every: int = 200_000
    keep_snapshots: int = 2
    max_unreadable: float = 0.01
    tracker: Tracker = "none"

    def __post_init__(self) -> None:
        if self.images < 1 or self.batch_size < 1:
            raise ValueError(f"images, batch_size: {self.images}, {self.batch_size}; both must be at least 1")
        least_one = ("micro_batch", "keep_snapshots", "report_every", "snapshot_every")
        require_between(self, **dict.fromkeys(least_one, (1, math.inf)))
        require_between(self, image_size=(1, LARGEST_IMAGE), seed=(0, math.inf), workers=(0, 1024), max_unreadable=(0, 1))
        if not self.run or "\0" in self.run:
            raise ValueError(f"run: {self.run!r}; give a folder")
