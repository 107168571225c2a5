"""The training of a tokenizer: one function, top to bottom. The only clock is images seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.core.code_usage import code_usage
from pipeline.core.command import Interrupted, Interruption
from pipeline.core.config import to_yaml
from pipeline.core.data.images import ImageDataset, UnreadableImages, image_batches
from pipeline.core.data.sources import load_data
from pipeline.core.errors import UserError
from pipeline.core.files import new_folder
from pipeline.core.launch import agreed_signal, gathered, reduced, require_agreement, start_accelerator, start_tracker
from pipeline.core.perceptual import load_perceptual
from pipeline.core.progress import progress_bar
from pipeline.core.rng import derive_seed
from pipeline.core.run_folder import RunFolder, write_origin
from pipeline.core.running_means import RunningMeans
from pipeline.core.schedule import cosine_with_warmup, crossed, set_learning_rate
from pipeline.core.snapshot import load_newest_snapshot, save_snapshot, snapshots
from pipeline.core.step_guard import Averages, StepGuard, marked, persistent_buffers, step_if
from stage1_tokenizer.config import Stage1Config
from stage1_tokenizer.guidance import VisionGuide
from stage1_tokenizer.losses import PatchDiscriminator, adaptive_weight, hinge_loss
from stage1_tokenizer.objective import TokenizerObjective
from stage1_tokenizer.quantizers.soft_assignment import require_chosen
from stage1_tokenizer.tokenizer import Tokenizer
from stage1_tokenizer.vision import load_vision

GAN_LEAD = 0.05  # share of the training by which the discriminator is ahead of the adversarial loss


def train(config: Stage1Config) -> Path:
    """Train a tokenizer, or go on where its last snapshot left it; gives the folder of the finished model."""
    run = RunFolder(config.run)
    finished = run.path / "tokenizer"
    # an encoder takes no part while it is frozen, and of a published one parts never do
    accelerator = start_accelerator(config.precision, config.tracker, run.path, idle_parameters=config.backbone.pretrained)
    try:
        require_chosen(accelerator.device)
    except ValueError as error:
        raise UserError(str(error)) from None
    if accelerator.is_main_process:
        run.open(config)
    accelerator.wait_for_everyone()
    require_agreement(accelerator, settings=to_yaml(config), progress=[finished.exists(), *snapshots(run.snapshots)])
    if finished.exists():
        accelerator.print(f"{finished}: finished before; delete {run.path} to train anew")
        return finished
    interruption = Interruption()
    data = load_data(**config.data)
    require_agreement(accelerator, data=data.fingerprint)
    dataset = ImageDataset(data.train, config.image_size, config.flip, config.seed)
    unreadable = UnreadableImages(config.max_unreadable)

    torch.manual_seed(derive_seed(config.seed, "weights"))
    tokenizer = build_tokenizer(config)
    tokenizer.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # a quarter faster on CPUs, and what tensor cores want
    discriminator = PatchDiscriminator(config.loss.discriminator_channels, config.loss.discriminator_layers)
    perceptual = load_perceptual(config.loss.perceptual)
    if perceptual is not None:
        perceptual.to(accelerator.device)
    guide = build_guide(config, tokenizer, accelerator.device)
    thaw = config.loss.thaw if config.backbone.pretrained else 0.0
    objective = TokenizerObjective(tokenizer, perceptual, config.loss.perceptual_weight, guide, thaw)
    optimizer = torch.optim.AdamW(
        parameter_groups(objective, config),
        config.optim.lr,
        _pair(config.optim.betas),
        weight_decay=config.optim.weight_decay,
        fused=True,
    )
    discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), config.loss.discriminator_lr, (0.5, 0.9), fused=True)
    gan_weight = torch.zeros((), device=accelerator.device)
    images_seen = 0

    state = load_newest_snapshot(run.snapshots)
    if state is None:
        tokenizer.to(accelerator.device)
        initialize_codes(tokenizer, dataset, config, accelerator)
    else:
        images_seen = state["images_seen"]
        objective.load_state_dict(state["objective"])
        discriminator.load_state_dict(state["discriminator"])
        optimizer.load_state_dict(state["optimizer"])
        match_layouts(optimizer)
        discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        gan_weight = state["gan_weight"].to(accelerator.device)
    ema = Averages(list(tokenizer.parameters()), decay=config.optim.ema)
    if state is not None:
        ema.load_state_dict(state["ema"])
    ema.to(accelerator.device)
    stepper, optimizer, judge, discriminator_optimizer = accelerator.prepare(
        objective, optimizer, discriminator, discriminator_optimizer
    )
    means = RunningMeans()
    guard = StepGuard(run, accelerator, config.optim.max_bad_steps, persistent_buffers(objective))
    tokens: list[Tensor] = []  # -1 in steps that were left out
    if state is not None:
        guard.load_state_dict(state["guard"])
        means.load_state_dict(state["means"], accelerator.device)
        tokens = [state["tokens"].to(accelerator.device).tensor_split(accelerator.num_processes)[accelerator.process_index]]
    if accelerator.is_main_process:
        run.rewind(images_seen)
    start_tracker(accelerator, config.tracker, config, run.path)

    bar = progress_bar(config.images, f"tokenizer {run.path.name}", start=images_seen, enabled=accelerator.is_main_process)
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = image_batches(dataset, images_seen, config.images, config.batch_size, rank, world, config.workers)
    # a pretrained encoder by itself: its gradient is ten times the others', which would hold them back
    clipped = [without(objective.parameters(), encoder_parameters(objective, config)), encoder_parameters(objective, config)]
    objective.anneal(min(1.0, images_seen / config.images))
    discriminator.eval()
    for batch in batches:
        unreadable.update(batch)
        progress = images_seen / config.images
        gan = config.loss.gan_weight > 0 and progress >= config.loss.gan_start
        discriminating = config.loss.gan_weight > 0 and progress >= config.loss.gan_start - GAN_LEAD
        rate = cosine_with_warmup(images_seen, config.optim.warmup, config.images, config.optim.final_lr)
        set_learning_rate(optimizer, config.optim.lr * rate)
        torch.manual_seed(derive_seed(config.seed, "step", images_seen, rank))

        guard.keep()
        images = batch["image"].to(accelerator.device, non_blocking=True).float() / 127.5 - 1
        with accelerator.autocast():
            out = stepper(images, config.micro_batch, discriminator if gan else None, gan_weight)
        accelerator.backward(marked(out.loss, *out.terms.values()))
        accelerator.unscale_gradients()
        norms = [nn.utils.clip_grad_norm_(part, config.optim.clip) for part in clipped]
        good = guard.judge(*norms)
        step_if(good, optimizer)
        optimizer.zero_grad()
        guard.restore(good)
        ema.step_if(good, list(tokenizer.parameters()))
        terms = out.terms | {"gradient_norm": norms[0]}
        if gan:
            # one step late, so that it is of the global batch whatever the number of processes and micro-batches
            summed = [reduced(accelerator, gradient, "sum") for gradient in out.last_layer]
            weight = config.loss.gan_weight * adaptive_weight(summed[0], summed[1])
            gan_weight = torch.where(good, weight, gan_weight)
            terms["gan_weight"] = gan_weight
        if discriminating:
            judge.train()  # the spectral norm takes one power iteration per step, in its own step only
            with accelerator.autocast():
                logits = judge(torch.cat([images, out.reconstruction]))
                discriminator_loss = hinge_loss(*logits.float().chunk(2))
            judge.eval()
            accelerator.backward(marked(discriminator_loss, torch.where(good, 0, torch.nan)))
            good = guard.judge(gradient_norm(discriminator))
            step_if(good, discriminator_optimizer)
            discriminator_optimizer.zero_grad()
            terms["discriminator"] = discriminator_loss

        before, images_seen = images_seen, images_seen + config.batch_size
        objective.anneal(min(1.0, images_seen / config.images))
        means.add(terms, good)
        tokens.append(torch.where(good, out.indices, -1))
        guard.note(good, {"loss": out.loss, **terms}, before, config.optim.lr * rate)
        bar.update(min(config.batch_size, config.images - before))
        last = images_seen >= config.images
        if last or crossed(before, images_seen, config.report_every):
            report(accelerator, run, bar, means, guard, tokens, tokenizer, images_seen, config.optim.lr * rate)
            tokens.clear()
        stopping = agreed_signal(accelerator, interruption, images_seen // config.batch_size)
        if last or stopping or crossed(before, images_seen, config.snapshot_every):
            guard.require_finite_weights(objective, discriminator)
            unreported = gathered(accelerator, torch.cat(tokens)) if tokens else out.indices[:0]
            statistics, counts = means.state_dict(accelerator), guard.state_dict()
            if accelerator.is_main_process:
                state = {
                    "images_seen": images_seen,
                    "means": statistics,
                    "guard": counts,
                    "tokens": unreported,
                    "objective": objective.state_dict(),
                    "discriminator": discriminator.state_dict(),
                    "optimizer": optimizer.optimizer.state_dict(),
                    "discriminator_optimizer": discriminator_optimizer.optimizer.state_dict(),
                    "gan_weight": gan_weight,
                    "ema": ema.state_dict(),
                }
                save_snapshot(run.snapshots, images_seen, state, config.keep_snapshots)
            accelerator.wait_for_everyone()
        if stopping and not last:
            bar.close()
            raise Interrupted(stopping)
    bar.close()

    ema.copy_to(tokenizer.parameters())
    if accelerator.is_main_process:
        export(tokenizer, finished, config, data.fingerprint)
    accelerator.end_training()
    return finished


def build_tokenizer(config: Stage1Config) -> Tokenizer:
    """The tokenizer of a configuration, with fresh weights; UserError where its parts do not fit."""
    try:
        return Tokenizer.create(config.image_size, config.backbone, config.quantizer, config.vision)
    except (ValueError, TypeError) as error:
        raise UserError(f"config.{error}") from None


def build_guide(config: Stage1Config, tokenizer: Tokenizer, device: torch.device) -> VisionGuide | None:
    """What the vision network asks, if it has a part in this training; a pretrained encoder gets its weights here."""
    if not (config.backbone.pretrained or config.loss.vf_weight):
        return None
    try:
        network = load_vision(config.vision, tokenizer.grid).to(device)
    except (ValueError, TypeError) as error:
        raise UserError(f"config.{error}") from None
    if config.backbone.pretrained:
        tokenizer.encoder.load_state_dict(network.state_dict())
    return VisionGuide(
        network,
        tokenizer.quantizer.input_dim,
        config.loss.vf_weight,
        config.loss.vf_adaptive,
        _pair(config.loss.vf_margins),
        config.loss.distillation_weight if config.backbone.pretrained else 0.0,
    )


def parameter_groups(objective: TokenizerObjective, config: Stage1Config) -> list[dict[str, Any]]:
    """The quantizer's parameters and those of a pretrained encoder apart from the others, with factors on their rates."""
    quantizer, encoder = list(objective.tokenizer.quantizer.parameters()), encoder_parameters(objective, config)
    groups = [
        {"params": without(objective.parameters(), quantizer + encoder), "factor": 1.0},
        {"params": quantizer, "factor": config.optim.quantizer_lr},
    ]
    return [*groups, {"params": encoder, "factor": config.optim.encoder_lr}] if encoder else groups


def encoder_parameters(objective: TokenizerObjective, config: Stage1Config) -> list[nn.Parameter]:
    """Those of a pretrained encoder; none where the encoder is trained from scratch."""
    return list(objective.tokenizer.encoder.parameters()) if config.backbone.pretrained else []


def without(parameters: Iterable[nn.Parameter], others: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Parameters that are not among the others."""
    theirs = {id(parameter) for parameter in others}
    return [parameter for parameter in parameters if id(parameter) not in theirs]


def gradient_norm(module: nn.Module) -> Tensor:
    """Of all its parameters that have a gradient."""
    return nn.utils.get_total_norm([parameter.grad for parameter in module.parameters() if parameter.grad is not None])


def match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Lay the moments out in memory as their parameters are: the fused step pairs them by address, not by index."""
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(value)


@torch.no_grad()
def initialize_codes(tokenizer: Tokenizer, dataset: ImageDataset, config: Stage1Config, accelerator: Accelerator) -> None:
    """Let the quantizer start from latents of the first images: four for every code, from about 4096 images at most.

    Whole batches, in stretches of consecutive images per process: the same latents in the same order for any number of them,
    bit for bit, since starts look for distinct ones.
    """
    wanted = min(4096, -(-4 * max(tokenizer.spec.sizes) // tokenizer.spec.t))
    rows, left = divmod(config.batch_size, accelerator.num_processes)
    if left:
        raise UserError(f"config.batch_size: {config.batch_size} cannot be shared by {accelerator.num_processes} processes")
    share = rows * -(-wanted // config.batch_size)
    start = share * accelerator.process_index
    latents = []
    for batch in image_batches(dataset, start, start + share, rows):
        for image in batch["image"].split(1):  # in batches of several sizes its latents round differently: copies would differ
            latents.append(tokenizer.latents(image.to(accelerator.device).float() / 127.5 - 1))
    tokenizer.quantizer.initialize(torch.cat(latents))


def report(
    accelerator: Accelerator,
    run: RunFolder,
    bar: Any,
    means: RunningMeans,
    guard: StepGuard,
    tokens: list[Tensor],
    tokenizer: Tokenizer,
    images_seen: int,
    rate: float,
) -> None:
    """Log the means since the last report, and how the tokens of these images use the codes."""
    record = means.take(accelerator) | guard.take()
    indices = gathered(accelerator, torch.cat(tokens)).flatten(0, 1).cpu()
    indices = indices[(indices >= 0).all(1)]
    said = "no good step"
    if len(indices):
        usage = code_usage(indices, tokenizer.spec.sizes)
        record |= {"perplexity": usage.perplexity, "codes_used": usage.share}
        said = f"L1 {record['pixel']:.4f}, {usage.share:.0%} of codes"
    record |= {"lr": rate}
    if accelerator.is_main_process:
        run.log({"images": images_seen, **record})
        bar.set_postfix_str(said, refresh=False)
    accelerator.log(record, step=images_seen)


def export(tokenizer: Tokenizer, folder: Path, config: Stage1Config, fingerprint: str) -> None:
    """Write the finished tokenizer (safetensors, config.json) and where it comes from."""
    tokenizer.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]  # safetensors takes no other
    tokenizer.eval()
    with new_folder(folder) as aside:
        tokenizer.save_pretrained(aside)
        write_origin(aside, config, data=config.data, data_fingerprint=fingerprint)


def dry_run(config: Stage1Config) -> str:
    """The resolved configuration and what it costs, as text."""
    with torch.device("meta"):  # shapes without memory or work
        tokenizer = build_tokenizer(config).eval()
    parts = {name: tokenizer.get_submodule(name) for name in ("encoder", "quantizer", "decoder")}
    lines = [to_yaml(config)]
    lines += [f"{name}: {_count(part) / 1e6:.2f} M parameters" for name, part in parts.items()]
    images = torch.empty(1, 3, *tokenizer.spec.image_size, device="meta")
    codes = torch.empty(1, *tokenizer.grid, tokenizer.quantizer.dim, device="meta")
    encoding, decoding = _flops(tokenizer.encoder, images), _flops(tokenizer.render, codes)
    # a backward pass costs two forward ones; a pretrained encoder has none until it thaws, and then a second forward one
    thaw = config.loss.thaw if config.backbone.pretrained else 0.0
    flops = encoding * (thaw + (1 - thaw) * (4 if config.backbone.pretrained else 3)) + 3 * decoding
    lines.append(f"tokens: {tokenizer.spec}")
    lines.append(f"cost: about {flops / 1e9:.2f} GFLOP per image and training step of encoder and decoder, "
                 f"{flops * config.images / 1e15:.3g} PFLOP in all; {config.images / config.batch_size:.0f} steps")
    return "\n".join(lines)


def _flops(function: Callable[[Tensor], Any], example: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(example)
    return counter.get_total_flops()


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _pair(values: tuple[float, ...]) -> tuple[float, float]:
    first, second = values
    return first, second
