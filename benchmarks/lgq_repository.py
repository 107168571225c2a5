"""The LGQ repository's side of `benchmarks.prior`, written again plainly after its code (KurbanIntelligenceLab/LGQ, 9d78742).

Sizes are those of its run at 256 px with 16,384 codes (shell/slurm/train_lgq.sh, train_maskgit_lmb.sh): an encoder of 128, then
256 channels to 16 x 16 latents of 64, a transformer of 12 post-norm layers x 512, AdamW not fused. Left out: dropout, as from
ours, and some passes over the n x k assignment that only fill statistics. Other than there: an optimizer's step for every
batch, not for every fourth (at 8 images on a CPU a few hundredths of the time), and on a GPU bfloat16 and cuDNN, both of which
its code does without.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

GRID, CHANNELS, EMBEDDED = 16, 128, 64
EPS = 1e-12


class Residual(nn.Module):
    """Two convolutions, each behind a group norm and SiLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(32, channels) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        h = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = convolution(F.silu(norm(h)))
        return x + h


class SelfAttention(nn.Module):
    """Four heads over all places, softmax and products one after the other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        q, k, v = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, 4, -1)).unbind(1)  # b a c n
        seen = torch.softmax(q.transpose(2, 3) @ k / k.shape[2] ** 0.5, dim=-1)
        return x + self.out((seen @ v.transpose(2, 3)).transpose(2, 3).reshape(x.shape))


class Encoder(nn.Sequential):
    """256 x 256 pixels to 16 x 16 latents: two residual blocks per size, attention at the last."""

    def __init__(self) -> None:
        wide = 2 * CHANNELS
        layers: list[nn.Module] = [nn.Conv2d(3, CHANNELS, 3, padding=1)]
        for channels in (CHANNELS, wide, wide, wide):
            layers += [Residual(channels), Residual(channels), nn.Conv2d(channels, wide, 4, stride=2, padding=1)]
        layers += [Residual(wide), Residual(wide), SelfAttention(wide)]
        super().__init__(*layers, nn.Conv2d(wide, EMBEDDED, 1), nn.GroupNorm(8, EMBEDDED))


@torch.no_grad()
def assign(z: Float[Tensor, "n c"], codebook: Float[Tensor, "k c"]) -> Int[Tensor, " n"]:
    """Indices of latents by the training forward of LGQ's quantizer, whose codes, perplexities and losses nobody looks at."""
    p = torch.softmax(-torch.cdist(z, codebook).square(), 1)
    index, usage = p.argmax(1), p.mean(0)
    hard = torch.zeros_like(p).scatter_(1, index[:, None], 1.0)
    soft = p @ codebook
    codes = soft + (codebook[index] - soft)
    for u in (usage, hard.mean(0)):
        (u.clamp_min(EPS) * u.clamp_min(EPS).log()).sum()
    F.mse_loss(codes, z)
    F.relu(1 - p.square().sum(1)).mean()
    usage.square().sum().mul(len(codebook))
    return index


class Layer(nn.Module):
    """Attention and GELU, a layer norm after each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=EPS) for _ in range(2))

    def forward(self, x: Float[Tensor, "b n f"]) -> Float[Tensor, "b n f"]:
        x = self.norms[0](x + self.attention(x, x, x, need_weights=False)[0])
        return self.norms[1](x + self.mlp(x))


class Transformer(nn.Module):
    """Codes, mask, start and classes in one vocabulary; logits over all of it, with a bias for each at each place."""

    def __init__(self, codes: int, classes: int, depth: int, width: int, heads: int) -> None:
        super().__init__()
        self.codes = codes
        vocabulary, places = codes + 2 + classes, GRID * GRID + 1
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(places, width))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(depth)))
        self.prediction = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=EPS))
        self.bias = nn.Parameter(torch.zeros(places, vocabulary))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def forward(self, tokens: Int[Tensor, "b t"], labels: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        """Cross-entropy of all tokens of images of these classes, seen or masked: one masked share for all."""
        count = int(torch.rand(()).mul(torch.pi / 2).cos() * GRID**2)
        kept = torch.rand(tokens.shape, device=tokens.device).argsort(dim=1) < count
        shown = torch.cat([labels[:, None] + self.codes + 2, tokens.where(kept, self.codes)], dim=1)
        features = self.prediction(self.layers(self.norm(self.embedding(shown) + self.positions)))
        logits = features @ self.embedding.weight.T + self.bias
        target = F.pad(tokens, (1, 0), value=-100)
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100)


def training_step(
    images: Float[Tensor, "b 3 y x"], labels: Int[Tensor, " b"], codes: int, classes: int, depth: int, width: int, heads: int
) -> Callable[[], None]:
    """One step of the transformer's training, from images."""
    device = images.device
    encoder = Encoder().to(device).eval()
    codebook = torch.randn(codes, EMBEDDED, device=device)
    transformer = Transformer(codes, classes, depth, width, heads).to(device).train()
    optimizer = torch.optim.AdamW(transformer.parameters(), 1e-4, (0.9, 0.96), weight_decay=0.045)

    def step() -> None:
        with torch.no_grad():
            z = encoder(images).movedim(1, -1)
        tokens = assign(z.flatten(0, -2).float(), codebook).view(len(images), -1)
        transformer(tokens, labels).backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step
