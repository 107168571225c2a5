"""The priors beside their peers, same sizes and device, in one command:  python -m benchmarks.prior

The sizes are those of the LGQ repository's MaskGIT: 12 layers x 512, 8 heads, 256 tokens, K = 16,384; weights are random,
for nothing of what is timed looks at their values. In float32 on the CPU, bfloat16 on a GPU. The parts:

  training   images a second of one AdamW step.
             `repository`: what the LGQ repository does: encodes the images in every step, with the quantizer's training
             forward (n x k distances and assignment), and works out logits of all tokens, seen ones too, over codes,
             mask and classes, with a bias for each of these at each position;
             `all_logits`: tokens from a store, but the logits of all tokens; `ours`: logits and loss of masked tokens only;
             `ours_compiled`: with the blocks compiled (`compile: true`).
             The trunk is ours in all four. The encoder is that of configs/stage1/imagenet256_f16.yaml, in torch's usual
             layout of memory, as there.
  maskgit    sampling at equal steps, confidence order and guidance.
             `amused`: diffusers' AmusedScheduler with its pipeline's loop around our trunk, which needs all logits;
             `ours`, and `ours_halton`: an order that is known before, which needs the logits of the revealed tokens only.
  ar         sampling token after token, without guidance.
             `uncached`: the whole prefix anew for each token (timed at every 16th token);
             `llama`, `llama_static`: transformers' LlamaForCausalLM.generate, of the same sizes, with its growing and with its
             static cache; `ours`.
  parallel   `ours_parallel`: the autoregressive prior in a random order, several tokens a step, beside `ours` for the same
             images. What that costs in quality is not measured here: weights are random.

Every measurement is a process of its own, and the rounds go over all of them; ratios are of the medians. Writes
results/prior_DEVICE.json, and goes on if it exists. About half an hour on two cores that nobody else uses.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_amused import AmusedScheduler
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.measuring import device_name, in_a_process
from pipeline.core.command import run_command
from pipeline.core.config import load_config
from pipeline.core.files import read_json, write_json
from pipeline.core.run_folder import versions
from pipeline.tokenization import code_vectors
from stage1_tokenizer.config import Stage1Config
from stage1_tokenizer.training import build_tokenizer
from stage2_prior.autoregressive import AutoregressivePrior
from stage2_prior.maskgit import MaskGITPrior, smallest
from stage2_prior.prior import Prior
from stage2_prior.sampling import ARSampling, MaskGITSampling
from stage2_prior.training import parameter_groups

TOKENIZER = "configs/stage1/imagenet256_f16.yaml"
GRID, CODES, CLASSES = 16, 16384, 1000
SHAPE: dict[str, Any] = {"depth": 12, "width": 512, "heads": 8}
SPEC: dict[str, Any] = {"sizes": [CODES], "scales": [[GRID, GRID]], "image_size": [256, 256], "num_classes": CLASSES}
STEPS, GUIDANCE = 12, 3.0
PARALLEL_STEPS = 24
OTHERS = 1 + CLASSES + 1  # entries of the repository's vocabulary that are no codes
EVERY = 16  # tokens, of which one is timed without a cache
CASES: dict[str, dict[str, list[int]]] = {  # part -> writing -> images at a time
    "training": {"repository": [8], "all_logits": [8], "ours": [8], "ours_compiled": [8]},
    "maskgit": {"amused": [4], "ours": [4], "ours_halton": [4]},
    "ar": {"uncached": [4], "llama": [4], "llama_static": [4], "ours": [4]},
    "parallel": {"ours": [1, 4], "ours_parallel": [1, 4]},
}
PEERS = {"training": ["repository", "all_logits"], "maskgit": ["amused"], "ar": ["uncached", "llama", "llama_static"]}
PEERS["parallel"] = ["ours"]


def main() -> None:
    """Parse the command line, then measure what the result file lacks."""
    parser = argparse.ArgumentParser(description="Priors beside their peers: training, MaskGIT and autoregressive sampling.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parts", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3, help="processes of each case (default: 3)")
    parser.add_argument("--out", type=Path, help="default: results/prior_DEVICE.json")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps({"seconds_per_image": measure(**arguments.case)}))
        return
    name = device_name(arguments.device)
    slug = "cpu" if arguments.device == "cpu" else re.sub(r"\W+", "_", name.lower())
    out = arguments.out or Path(f"results/prior_{slug}.json")
    result = read_json(out) if out.exists() else {"device": name, "settings": settings(), "rows": []}
    done = {key(row) for row in result["rows"]}
    for number in range(arguments.rounds):
        for part in arguments.parts:
            for writing, sizes in CASES[part].items():
                for batch in sizes:
                    case = {"part": part, "writing": writing, "batch": batch}
                    if key({**case, "round": number}) in done:
                        continue
                    row = {**case, "round": number, **in_a_process("benchmarks.prior", {**case, "device": arguments.device})}
                    result["rows"].append(row)
                    result |= {"versions": versions(), "summary": summary(result["rows"])}
                    write_json(out, result)
                    print(f"{part:9s} {writing:14s} batch {batch}  {1 / row['seconds_per_image']:8.3f} images/s", flush=True)


def settings() -> dict[str, Any]:
    """What the numbers depend on."""
    return {"spec": SPEC, "trunk": SHAPE, "steps": STEPS, "guidance": GUIDANCE, "parallel_steps": PARALLEL_STEPS}


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a measurement the same as another."""
    return tuple(row[name] for name in ("part", "writing", "batch", "round"))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the rounds, and how many times as fast as its peers each writing is."""
    medians: dict[tuple[str, str, int], float] = {}
    for row in rows:
        name = (row["part"], row["writing"], row["batch"])
        same = [each["seconds_per_image"] for each in rows if (each["part"], each["writing"], each["batch"]) == name]
        medians[name] = statistics.median(same)
    found = []
    for (part, writing, batch), seconds in medians.items():
        entry: dict[str, Any] = {"part": part, "writing": writing, "batch": batch, "images_per_second": 1 / seconds}
        for peer in PEERS[part]:
            if peer != writing and (part, peer, batch) in medians:
                entry[f"times_{peer}"] = medians[part, peer, batch] / seconds
        found.append(entry)
    return found


def measure(part: str, writing: str, batch: int, device: str) -> float:
    """Seconds of an image: the median of three, after a smaller first one."""
    torch.manual_seed(0)
    with precision(device):
        once = PARTS[part](writing, batch, device)
        once()
        return statistics.median(clocked(once, device) for _ in range(3)) / batch


def precision(device: str) -> Any:
    """bfloat16 where there are units for it."""
    return nullcontext() if device == "cpu" else torch.autocast("cuda", torch.bfloat16)


def clocked(work: Callable[[], object], device: str) -> float:
    """Seconds that this takes, or that it says it took."""
    start = time.perf_counter()
    told = work()
    if device != "cpu":
        torch.cuda.synchronize()
    return told if isinstance(told, float) else time.perf_counter() - start


def training(writing: str, batch: int, device: str) -> Callable[[], object]:
    """One step of MaskGIT's training."""
    prior = MaskGITPrior(**SPEC, **SHAPE, label_smoothing=0.1, dropout=0.0).to(device).train()  # pyright: ignore[reportArgumentType]
    if writing == "ours_compiled":
        prior.trunk.compile_blocks()
    vectors = torch.nn.Parameter(0.02 * torch.randn(OTHERS, SHAPE["width"], device=device))  # of mask and classes
    bias = torch.nn.Parameter(torch.zeros(GRID * GRID, CODES + OTHERS, device=device))
    more = [vectors, bias] if writing == "repository" else []
    groups = [*parameter_groups(prior, 0.045), {"params": more, "weight_decay": 0.045}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], 1e-4, (0.9, 0.96), fused=True)
    stored = torch.randint(CODES, (batch, GRID * GRID, 1), device=device)
    images = torch.rand(batch, 3, 256, 256, device=device) * 2 - 1
    encode = online_encoder(device) if writing == "repository" else None
    labels, randomness = torch.arange(batch, device=device) % CLASSES, torch.Generator().manual_seed(0)

    def step() -> None:
        tokens = stored if encode is None else encode(images)
        noise = {name: draws.to(device) for name, draws in prior.draw_noise(batch, randomness).items()}
        if writing.startswith("ours"):
            loss = prior(tokens, labels, noise) / prior.loss_count(noise)
        else:
            loss = loss_of_all(prior, tokens, labels, noise, more)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def loss_of_all(
    prior: MaskGITPrior, tokens: Tensor, labels: Tensor, noise: dict[str, Tensor], more: list[torch.nn.Parameter]
) -> Tensor:
    """Cross-entropy of every token, masked or not, from logits that exist all at once; `more` enlarges the vocabulary."""
    features = prior._features(tokens, smallest(noise["priority"], noise["count"]), labels)
    codes, bias = prior.codes.codes(0)
    if more:
        codes, bias = torch.cat([codes, more[0]]), more[1]
    logits = F.linear(features, codes) + bias
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), label_smoothing=0.1)


def online_encoder(device: str) -> Callable[[Tensor], Tensor]:
    """Encodes images with the training forward of the published quantizer, as its distances and assignments are written."""
    config = load_config(Stage1Config, TOKENIZER, [f"quantizer.codebook_size={CODES}"])
    tokenizer = build_tokenizer(config).to(device).eval()  # pyright: ignore[reportArgumentType]
    tables = code_vectors(tokenizer)
    assert tables is not None
    codebook = tables[0].float()

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        z = tokenizer.latents(images).flatten(0, -2).float()
        p = torch.softmax(-torch.cdist(z, codebook).square(), 1)
        index = p.argmax(1)
        hard, soft = F.one_hot(index, CODES).to(p.dtype) @ codebook, p @ codebook
        torch.stack([(soft + (hard - soft)).sum(), p.square().sum(1).mean(), p.mean(0).square().sum()])  # codes, peak, usage
        return index.view(len(images), -1, 1)

    return encode


def maskgit(writing: str, batch: int, device: str) -> Callable[[], object]:
    """Sampling with guidance, all tokens of an image in STEPS steps."""
    prior = MaskGITPrior(**SPEC, **SHAPE).to(device).eval()  # pyright: ignore[reportArgumentType]
    randomize(prior)
    labels = list(range(batch))
    if writing == "amused":
        return lambda: amused_loop(prior, labels, device)
    order = "halton" if writing == "ours_halton" else "confidence"
    options = MaskGITSampling(steps=STEPS, schedule="cosine", guidance_scale=GUIDANCE, order=order, choice_temperature=2.0)
    return lambda: prior.sample(labels, options, labels)


@torch.no_grad()
def amused_loop(prior: MaskGITPrior, labels: list[int], device: str) -> Tensor:
    """The denoising loop of diffusers' AmusedPipeline: a doubled batch, guided logits of all tokens, the scheduler's step."""
    scheduler = AmusedScheduler(mask_token_id=CODES)
    scheduler.set_timesteps(STEPS, (2, 0), torch.device(device))
    assert scheduler.timesteps is not None
    classes = torch.tensor(labels, device=device)
    both = prior._branch_labels(classes, (False, True))
    tokens = torch.full((len(labels), GRID, GRID), CODES, device=device)
    for timestep in scheduler.timesteps:  # pyright: ignore[reportGeneralTypeIssues]
        doubled = torch.cat([tokens] * 2).view(2 * len(labels), -1, 1)
        features = prior._features(doubled, (doubled == CODES)[..., 0], both)
        logits = F.linear(prior.codes.query(0, features), *prior.codes.codes(0))
        unconditional, conditional = logits.chunk(2)
        logits = unconditional + GUIDANCE * (conditional - unconditional)
        logits = logits.transpose(1, 2).reshape(len(labels), CODES, GRID, GRID)
        tokens = scheduler.step(logits, timestep, tokens).prev_sample  # pyright: ignore[reportAttributeAccessIssue,reportArgumentType]
    return tokens


def autoregressive(writing: str, batch: int, device: str) -> Callable[[], object]:
    """Sampling token after token, without guidance."""
    labels = list(range(batch))
    if writing in ("llama", "llama_static"):
        return llama(labels, device, "static" if writing == "llama_static" else None)
    random_orders = {"random_until": 1.0, "raster_from": 1.0} if writing == "ours_parallel" else {}
    prior = AutoregressivePrior(**SPEC, **SHAPE, **random_orders).to(device).eval()  # pyright: ignore[reportArgumentType]
    randomize(prior)
    if writing == "uncached":
        return lambda: uncached_loop(prior, torch.tensor(labels, device=device))
    options = ARSampling(steps=PARALLEL_STEPS, order="random") if writing == "ours_parallel" else ARSampling()
    return lambda: prior.sample(labels, options, labels)


@torch.no_grad()
def uncached_loop(prior: AutoregressivePrior, labels: Tensor) -> float:
    """Seconds of a loop that feeds the whole prefix for every token: timed at every EVERY-th token, for all."""
    tokens = torch.randint(CODES, (len(labels), GRID * GRID, 1), device=labels.device)
    total = 0.0
    for i in range(0, GRID * GRID, EVERY):
        start = time.perf_counter()
        x = prior.codes.embed(tokens[:, :i])
        features = prior.trunk(x, labels)[:, -1]
        logits = F.linear(prior.codes.query(0, features), *prior.codes.codes(0)).float()
        tokens[:, i, 0] = torch.multinomial(logits.softmax(-1), 1)[:, 0]
        if labels.device.type != "cpu":
            torch.cuda.synchronize()
        total += time.perf_counter() - start
    return total * EVERY


def llama(labels: list[int], device: str, cache: str | None) -> Callable[[], object]:
    """transformers' own model and loop: the class in front, then the tokens."""
    config = LlamaConfig(
        vocab_size=CODES + CLASSES,
        hidden_size=SHAPE["width"],
        intermediate_size=AutoregressivePrior(**SPEC, **SHAPE).trunk.shape.hidden,
        num_hidden_layers=SHAPE["depth"],
        num_attention_heads=SHAPE["heads"],
        num_key_value_heads=SHAPE["heads"],
        max_position_embeddings=GRID * GRID + 1,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).to(device).eval()  # pyright: ignore[reportArgumentType]
    prompts = torch.tensor(labels, device=device)[:, None] + CODES
    options: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "use_cache": True}
    options |= {"min_new_tokens": GRID * GRID, "max_new_tokens": GRID * GRID}
    if cache is not None:
        options["cache_implementation"] = cache
    mask = torch.ones_like(prompts)
    return lambda: model.generate(prompts, attention_mask=mask, **options)  # pyright: ignore[reportCallIssue,reportAttributeAccessIssue]


def randomize(prior: Prior) -> None:
    """Weights without zeros, so that nothing is a shortcut."""
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_(0.0, 0.02)


PARTS: dict[str, Callable[[str, int, str], Callable[[], object]]] = {
    "training": training,
    "maskgit": maskgit,
    "ar": autoregressive,
    "parallel": autoregressive,
}

if __name__ == "__main__":
    run_command(main)
