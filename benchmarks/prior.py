"""The priors beside their peers, same sizes and device, in one command:  python -m benchmarks.prior

The sizes are those of the LGQ repository's MaskGIT: 12 layers x 512, 8 heads, 256 tokens, K = 16,384; weights are random,
for nothing of what is timed looks at their values. In float32 on the CPU, bfloat16 on a GPU. The parts:

  training   images a second of one AdamW step.
             `lgq_repository`: what that repository does, with its own encoder and transformer (benchmarks/lgq_repository.py):
             encodes the images in every step, with the quantizer's training forward (n x k distances and assignment), and
             works out logits of all tokens, seen ones too, over codes, mask and classes, with a bias for each at each place;
             `repository_way`: such work with our trunk, loss, optimizer and encoder (configs/stage1/imagenet256_f16.yaml); in
             older results `repository`;
             `all_logits`: our trunk, tokens from a store, but the logits of all tokens;
             `ours`: logits and loss of masked tokens only; `ours_compiled`: with the blocks compiled (`compile: true`).
             Layout of memory as each has it, no dropout in any.
  maskgit    sampling at equal steps, confidence order and guidance.
             `amused`: diffusers' AmusedScheduler with its pipeline's loop around our trunk, which needs all logits;
             `ours`, and `ours_halton`: an order that is known before, which needs the logits of the revealed tokens only.
  ar         sampling token after token, without guidance.
             `uncached`: the whole prefix anew for each token (timed at every 16th token);
             `llama`, `llama_static`: transformers' LlamaForCausalLM.generate, of the same sizes, with its growing and with its
             static cache; `ours`: one token a pass (`lookahead=1`), for one image and for four.
  ahead      the same with a lookahead of 8 for one image, 4 for four. How many tokens a pass makes final depends on what
             the prior has learnt, so it is a trained one, --prior, beside a Llama of its sizes: `llama_static`,
             `ours_plain` (one token a pass), `ours`; `tokens_per_pass` says how many it were, of the image that took most
             passes.
  ahead_large  the sizes above again, with random weights whose guesses come true as often as they happen to: see
             `tokens_per_pass`. The summary also says what it would be if it were that of the trained prior (`at_trained`).
  parallel   `ours_parallel`: the autoregressive prior in a random order, several tokens a step, beside `ours` for the same
             images. What that costs in quality is not measured here: weights are random.

Every measurement is a process of its own, and the rounds go over all of them; ratios are of the medians. Writes
results/prior_DEVICE.json, and goes on if it exists: --rounds 3 adds what three rounds lack. Prints a table of the medians.
A round takes 15 to 25 minutes on two cores that nobody else uses.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_amused import AmusedScheduler
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import lgq_repository
from benchmarks.measuring import command_line, in_a_process, measured_by, opened, result_file
from benchmarks.prior_summary import advised, summary, table
from pipeline.api import load_prior, prior_folder, weights_sha256
from pipeline.core.command import run_command
from pipeline.core.config import load_config
from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.core.run_folder import read_stats
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
    "training": {"lgq_repository": [8], "repository_way": [8], "all_logits": [8], "ours": [8], "ours_compiled": [8]},
    "maskgit": {"amused": [4], "ours": [4], "ours_halton": [4]},
    "ar": {"uncached": [4], "llama": [1, 4], "llama_static": [1, 4], "ours": [1, 4]},
    "ahead": {"llama_static": [1, 4], "ours_plain": [1, 4], "ours": [1, 4]},
    "ahead_large": {"llama_static": [1, 4], "ours_plain": [1, 4], "ours": [1, 4]},
    "parallel": {"ours": [1, 4], "ours_parallel": [1, 4]},
}
PEAKED = 0.1  # standard deviation of embeddings of which guesses come true about as often as a trained prior's


def main() -> None:
    """Parse the command line, then measure what the result file lacks."""
    parser = command_line("prior", __doc__)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--parts", nargs="+", choices=CASES, default=list(CASES), help="default: all of them")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each case (default: 3)")
    parser.add_argument("--out", type=Path, help="default: results/prior_DEVICE.json")
    parser.add_argument("--prior", type=Path, default=Path("runs/demo/ar"), help="of `ahead`: a run (default: runs/demo/ar)")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(**arguments.case)))
        return
    out = arguments.out or result_file("prior", arguments.device)
    result = opened(out, arguments.device, settings=settings())
    if "ahead" in arguments.parts:
        trained_by = trained_settings(arguments.prior)
        if any(row["part"] == "ahead" for row in result["rows"]) and result["trained"]["sha256"] != trained_by["sha256"]:
            raise UserError(
                f"--prior {arguments.prior}: {out} has `ahead` of another prior; give another --out, or other --parts"
            )
        result["trained"] = trained_by
    done = {key(row) for row in result["rows"]}
    for number in range(arguments.rounds):
        for part in arguments.parts:
            for writing, sizes in CASES[part].items():
                for batch in sizes:
                    case = {"part": part, "writing": writing, "batch": batch}
                    if key({**case, "round": number}) in done:
                        continue
                    told = {"device": arguments.device, "prior": str(arguments.prior)}
                    row = {**case, "round": number, **in_a_process("benchmarks.prior", case | told)}
                    about = measured_by()
                    result["rows"].append(row | {"code": about["code"]})
                    result |= {"versions": about, "summary": summary(result["rows"])}
                    write_json(out, result)
                    print(f"{part:9s} {writing:14s} batch {batch}  {1 / row['seconds_per_image']:8.3f} images/s", flush=True)
    print(table(summary(result["rows"])))


def settings() -> dict[str, Any]:
    """What the numbers depend on."""
    return {"spec": SPEC, "trunk": SHAPE, "steps": STEPS, "guidance": GUIDANCE, "parallel_steps": PARALLEL_STEPS}


def trained_settings(run: Path) -> dict[str, Any]:
    """Which prior `ahead` is about, and how sure it is of its tokens."""
    prior = trained(run, "cpu")
    bits = [line["validation_bits_per_token"] for line in read_stats(run) if "validation_bits_per_token" in line]
    spec = {"sizes": prior.config["sizes"], "scales": prior.config["scales"]}
    return spec | {"trunk": asdict(prior.trunk.shape), "bits_per_token": bits[-1], "sha256": weights_sha256(prior_folder(run))}


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a measurement the same as another."""
    return tuple(row[name] for name in ("part", "writing", "batch", "round"))


def measure(part: str, writing: str, batch: int, device: str, prior: str) -> dict[str, float]:
    """Seconds of an image: the median of three, after a first one; and what else the work says of itself."""
    torch.manual_seed(0)
    with precision(device):
        once = ahead(part, writing, batch, device, Path(prior)) if part in AHEAD else PARTS[part](writing, batch, device)
        once()
        seconds, told = zip(*(clocked(once, device) for _ in range(3)), strict=True)
        return {"seconds_per_image": statistics.median(seconds) / batch} | (told[0] if isinstance(told[0], dict) else {})


def precision(device: str) -> Any:
    """bfloat16 where there are units for it."""
    return nullcontext() if device == "cpu" else torch.autocast("cuda", torch.bfloat16)


def clocked(work: Callable[[], object], device: str) -> tuple[float, object]:
    """Seconds that this takes, or that it says it took; and what it says."""
    start = time.perf_counter()
    told = work()
    if device != "cpu":
        torch.cuda.synchronize()
    return told if isinstance(told, float) else time.perf_counter() - start, told


def training(writing: str, batch: int, device: str) -> Callable[[], object]:
    """One step of MaskGIT's training."""
    images = torch.rand(batch, 3, 256, 256, device=device) * 2 - 1
    labels = torch.arange(batch, device=device) % CLASSES
    if writing == "lgq_repository":
        return lgq_repository.training_step(images, labels, CODES, CLASSES, **SHAPE)
    prior = MaskGITPrior(**SPEC, **SHAPE, label_smoothing=0.1, dropout=0.0).to(device).train()  # pyright: ignore[reportArgumentType]
    if writing == "ours_compiled":
        prior.trunk.compile_blocks()
    vectors = torch.nn.Parameter(0.02 * torch.randn(OTHERS, SHAPE["width"], device=device))  # of mask and classes
    bias = torch.nn.Parameter(torch.zeros(GRID * GRID, CODES + OTHERS, device=device))
    more = [vectors, bias] if writing == "repository_way" else []
    groups = [*parameter_groups(prior, 0.045), {"params": more, "weight_decay": 0.045}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], 1e-4, (0.9, 0.96), fused=True)
    stored = torch.randint(CODES, (batch, GRID * GRID, 1), device=device)
    encode = online_encoder(device) if writing == "repository_way" else None
    randomness = torch.Generator().manual_seed(0)

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
    """Our encoder of that size, and the published quantizer's training forward."""
    config = load_config(Stage1Config, TOKENIZER, [f"quantizer.codebook_size={CODES}"])
    tokenizer = build_tokenizer(config).to(device).eval()  # pyright: ignore[reportArgumentType]
    tables = code_vectors(tokenizer)
    assert tables is not None
    codebook = tables[0].float()

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        return lgq_repository.assign(tokenizer.latents(images).flatten(0, -2).float(), codebook).view(len(images), -1, 1)

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
        return llama(random_ar(), labels, device, "static" if writing == "llama_static" else None)
    prior = random_ar(**({"random_until": 1.0, "raster_from": 1.0} if writing == "ours_parallel" else {})).to(device)  # pyright: ignore[reportArgumentType]
    if writing == "uncached":
        return lambda: uncached_loop(prior, torch.tensor(labels, device=device))
    options = ARSampling(steps=PARALLEL_STEPS, order="random") if writing == "ours_parallel" else ARSampling(lookahead=1)
    return lambda: prior.sample(labels, options, labels)


def ahead(part: str, writing: str, batch: int, device: str, run: Path) -> Callable[[], object]:
    """Sampling in raster order without guidance, by a trained prior or one of the large sizes: tokens a pass."""
    prior = random_ar() if part == "ahead_large" else trained(run, device)
    labels = [number % prior.config["num_classes"] for number in range(batch)]
    if writing == "llama_static":
        return llama(prior, labels, device, "static")
    if part == "ahead_large":
        with torch.no_grad():
            prior.trunk.norm.weight.fill_(1.0)
            for block in prior.trunk.blocks:
                block.offsets.fill_(1.0)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
            prior.codes.get_parameter("tables.0").normal_(0.0, PEAKED)
    prior = prior.to(device)  # pyright: ignore[reportArgumentType]
    options = ARSampling(lookahead=1 if writing == "ours_plain" else advised(batch))

    def sample() -> dict[str, float]:
        """What a row of `ahead` says beside its seconds."""
        passes = 0

        def count(done: int, of: int, tokens: Tensor) -> Tensor:
            nonlocal passes
            passes += 1
            return tokens

        prior.sample(labels, options, labels, progress=count)
        return {"tokens_per_pass": prior.spec.t / passes, "lookahead": options.lookahead}

    return sample


def random_ar(**options: Any) -> AutoregressivePrior:
    """An autoregressive prior of the sizes above, on the CPU."""
    prior = AutoregressivePrior(**SPEC, **SHAPE, **options).eval()
    randomize(prior)
    return prior


def trained(run: Path, device: str) -> AutoregressivePrior:
    """The prior of a run; UserError where it is not an autoregressive one in raster order."""
    prior = load_prior(run)
    if not isinstance(prior, AutoregressivePrior) or prior.any_order:
        raise UserError(f"--prior {run}: not an autoregressive prior in raster order; train configs/stage2/ar_demo.yaml")
    return prior.to(device)  # pyright: ignore[reportArgumentType]


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


def llama(prior: AutoregressivePrior, labels: list[int], device: str, cache: str | None) -> Callable[[], object]:
    """transformers' own model and loop at the sizes of this prior: the class in front, then the tokens."""
    shape, t, codes = prior.trunk.shape, prior.spec.t, prior.spec.sizes[0]
    config = LlamaConfig(
        vocab_size=codes + prior.config["num_classes"],
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=t + 1,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).to(device).eval()  # pyright: ignore[reportArgumentType]
    prompts = torch.tensor(labels, device=device)[:, None] + codes
    options: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "use_cache": True}
    options |= {"min_new_tokens": t, "max_new_tokens": t}
    if cache is not None:
        options["cache_implementation"] = cache
    mask = torch.ones_like(prompts)
    return lambda: model.generate(prompts, attention_mask=mask, **options)  # pyright: ignore[reportCallIssue,reportAttributeAccessIssue]


def randomize(prior: Prior) -> None:
    """Weights without zeros, so that nothing is a shortcut."""
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_(0.0, 0.02)


AHEAD = ("ahead", "ahead_large")
PARTS: dict[str, Callable[[str, int, str], Callable[[], object]]] = {
    "training": training,
    "maskgit": maskgit,
    "ar": autoregressive,
    "parallel": autoregressive,
}

if __name__ == "__main__":
    run_command(main)
