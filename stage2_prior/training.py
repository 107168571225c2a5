"""The training of a prior on a token store: one function, top to bottom. The only clock is images seen."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.core.command import Interrupted, Interruption
from pipeline.core.config import to_yaml
from pipeline.core.errors import UserError
from pipeline.core.files import new_folder, read_json, write_json
from pipeline.core.launch import (
    agreed_signal,
    reduced,
    require_agreement,
    require_compiler,
    start_accelerator,
    start_tracker,
)
from pipeline.core.progress import progress_bar
from pipeline.core.rng import derive_seed, generator
from pipeline.core.run_folder import RunFolder, write_origin
from pipeline.core.running_means import RunningMeans
from pipeline.core.schedule import cosine_with_warmup, crossed, set_learning_rate
from pipeline.core.shards import full, load_optimizer, spread, whole
from pipeline.core.snapshot import load_newest_snapshot, save_snapshot, snapshots
from pipeline.core.step_guard import Averages, StepGuard, marked, step_if
from pipeline.core.token_store import TokenStore
from stage2_prior.config import Stage2Config
from stage2_prior.prior import Noise, Prior
from stage2_prior.priors import PRIORS, build_prior
from stage2_prior.sampling import RECOMMENDED, require_options


def train(config: Stage2Config) -> Path:
    """Train a prior, or go on where its last snapshot left it; gives the folder of the finished model."""
    run = RunFolder(config.run)
    finished = run.path / "prior"
    accelerator = start_accelerator(config.precision, config.tracker, run.path, shardable=True)
    store = TokenStore(config.tokens)
    if accelerator.is_main_process:
        run.open(config)
    accelerator.wait_for_everyone()
    progress = [finished.exists(), *snapshots(run.snapshots)]
    require_agreement(accelerator, settings=to_yaml(config), progress=progress, tokens=store.identity)
    if finished.exists():
        if accelerator.is_main_process:
            bring_options(finished, config)
        accelerator.print(f"{finished}: finished before; delete {run.path} to train anew")
        return finished
    interruption = Interruption()

    torch.manual_seed(derive_seed(config.seed, "weights"))
    prior = new_prior(config, store)
    if config.gradient_checkpointing:
        prior.enable_gradient_checkpointing()
    if config.compile:
        require_compiler(accelerator.device)
        prior.trunk.compile_blocks()
    optimizer = torch.optim.AdamW(
        parameter_groups(prior, config.optim.weight_decay), config.optim.lr, _pair(config.optim.betas), fused=True
    )
    images_seen = 0
    state = load_newest_snapshot(run.snapshots)
    if state is not None:
        require_tokenizer(state["tokenizer_sha256"], store, run)
        images_seen = state["images_seen"]
        prior.load_state_dict(state["prior"])
    prior.to(accelerator.device)  # pyright: ignore[reportArgumentType]
    stepper, optimizer = accelerator.prepare(prior, optimizer)  # may shard the parameters, which the rest then follows
    parameters = list(prior.parameters())
    ema, means = Averages(parameters, decay=config.optim.ema), RunningMeans()
    guard = StepGuard(run, accelerator, config.optim.max_bad_steps)
    if state is not None:
        load_optimizer(optimizer.optimizer, state["optimizer"])
        shadows = [spread(shadow, like) for shadow, like in zip(state["ema"]["shadow_params"], parameters, strict=True)]
        ema.load_state_dict({**state["ema"], "shadow_params": shadows})
        means.load_state_dict(state["means"], accelerator.device)
        guard.load_state_dict(state["guard"])
    if accelerator.is_main_process:
        run.rewind(images_seen)
    start_tracker(accelerator, config.tracker, config, run.path)

    bar = progress_bar(config.images, f"prior {run.path.name}", start=images_seen, enabled=accelerator.is_main_process)
    rank, world = accelerator.process_index, accelerator.num_processes
    stepper.train()
    for tokens, labels in store.training_batches(images_seen, config.images, config.batch_size, config.seed, rank, world):
        rate = cosine_with_warmup(images_seen, config.optim.warmup, config.images, config.optim.final_lr)
        set_learning_rate(optimizer, config.optim.lr * rate)
        randomness, progress = generator(config.seed, "noise", images_seen), images_seen / config.images
        noise = prior.draw_noise(config.batch_size, randomness, progress)
        count = prior.loss_count(noise)
        rows = slice(rank * len(labels), (rank + 1) * len(labels))
        noise = {name: values[rows] for name, values in noise.items()}

        loss = torch.zeros((), device=accelerator.device)
        chunks = torch.arange(len(labels)).split(config.micro_batch or len(labels))
        for chunk in chunks:
            draws = {name: values[chunk] for name, values in noise.items()}
            inputs = _on(accelerator.device, tokens[chunk], labels[chunk], draws)
            with nullcontext() if chunk is chunks[-1] else accelerator.no_sync(stepper):
                with accelerator.autocast():
                    # a share of the mean over the global batch; the processes' gradients are averaged, hence the factor
                    part = stepper(*inputs) * (world / count)
                accelerator.backward(marked(part))
            loss += part.detach()
        norm = full(torch.as_tensor(accelerator.clip_grad_norm_(parameters, config.optim.clip)))
        good = guard.judge(norm)
        step_if(good, optimizer)
        optimizer.zero_grad()
        ema.step_if(good, parameters)

        before, images_seen = images_seen, images_seen + config.batch_size
        terms = {"loss": loss, "gradient_norm": norm}
        means.add(terms, good)
        guard.note(good, terms, before, config.optim.lr * rate)
        bar.update(min(config.batch_size, config.images - before))
        last = images_seen >= config.images
        validating = last or crossed(before, images_seen, config.validate_every)
        if validating or crossed(before, images_seen, config.report_every):
            record = means.take(accelerator) | guard.take()
            if validating:
                record["validation_bits_per_token"] = validate(averaged(prior, ema), store, config, accelerator)
            if accelerator.is_main_process:
                run.log({"images": images_seen, **record, "lr": config.optim.lr * rate})
                bar.set_postfix_str(f"loss {record.get('loss', math.nan):.3f}", refresh=False)
            accelerator.log(record, step=images_seen)
        stopping = agreed_signal(accelerator, interruption, images_seen // config.batch_size)
        if last or stopping or crossed(before, images_seen, config.snapshot_every):
            guard.require_finite_weights(stepper)
            state = {
                "images_seen": images_seen,
                "guard": guard.state_dict(),
                "means": means.state_dict(accelerator),
                "tokenizer_sha256": store.identity.tokenizer_sha256,
                "prior": prior.state_dict(),
                "optimizer": optimizer.optimizer.state_dict(),
                "ema": ema.state_dict(),
            }
            state = whole(state, keep=accelerator.is_main_process)
            if accelerator.is_main_process:
                save_snapshot(run.snapshots, images_seen, state, config.keep_snapshots)
            accelerator.wait_for_everyone()
        if stopping and not last:
            bar.close()
            raise Interrupted(stopping)
    bar.close()

    result = averaged(prior, ema)
    if accelerator.is_main_process:
        export(result, finished, config, store)
    accelerator.end_training()
    return finished


def new_prior(config: Stage2Config, store: TokenStore) -> Prior:
    """A prior with fresh weights for the tokens and classes of a store; UserError where its settings do not fit."""
    vectors = store.code_vectors()
    dims = None if vectors is None else [table.shape[1] for table in vectors]
    try:
        options = {name: value for name, value in config.prior.items() if name != "sampling"}
        prior = build_prior(num_classes=store.num_classes, code_dims=dims, **store.spec.to_dict(), **options)
    except TypeError as error:
        problem = str(error).rpartition("() ")[2]
        raise UserError(f"config.prior: {problem}; see configs/prior/{config.prior['name']}.yaml") from None
    if vectors is not None:
        prior.codes.start(vectors)
    require_options("config.prior.sampling", prior.options_type, config.prior.get("sampling"))
    return prior


def require_tokenizer(expected: str, store: TokenStore, run: RunFolder) -> None:
    """UserError where a run goes on with tokens of another tokenizer than it began with."""
    if expected != store.identity.tokenizer_sha256:
        raise UserError(
            f"{store.path}: tokens of tokenizer {store.identity.tokenizer_sha256[:12]}, but {run.path} learned those of "
            f"{expected[:12]}; give another run=… or the store that it began with"
        )


def parameter_groups(prior: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """The weights of linear layers with weight decay; embeddings, gains and biases without."""
    linear = {id(module.weight) for module in prior.modules() if isinstance(module, nn.Linear)}
    decayed = [parameter for parameter in prior.parameters() if id(parameter) in linear]
    plain = [parameter for parameter in prior.parameters() if id(parameter) not in linear]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def averaged(prior: Prior, ema: EMAModel) -> Prior:
    """A prior of its own with the averaged weights, whole on every process, on the CPU."""
    names = [name for name, _ in prior.named_parameters()]
    weights = whole(prior.state_dict() | dict(zip(names, ema.shadow_params, strict=True)))
    copy = type(prior).from_config(prior.config)
    assert isinstance(copy, Prior)
    copy.load_state_dict(weights)
    return copy.eval()


def validation_rows(store: TokenStore, most: int) -> list[int]:
    """The same for every prior; drawn from the whole split, which stores have in the order of their classes."""
    order = torch.randperm(store.images("validation"), generator=generator("validation rows"))
    return order[:most].sort().values.tolist()


@torch.no_grad()
def validate(prior: Prior, store: TokenStore, config: Stage2Config, accelerator: Accelerator) -> float:
    """Bits per token on some validation images, the same draws every time; every process has the whole prior."""
    chosen = validation_rows(store, config.validation_images)
    rank, world = accelerator.process_index, accelerator.num_processes
    prior.to(accelerator.device)  # pyright: ignore[reportArgumentType]
    total = torch.zeros(2, device=accelerator.device, dtype=torch.float64)
    step = min(256, config.batch_size)
    for number, start in enumerate(range(0, len(chosen), step)):
        if number % world != rank:
            continue
        rows = chosen[start : start + step]
        noise = prior.draw_noise(len(rows), generator(config.seed, "validation", start))
        inputs = _on(accelerator.device, *store.batch("validation", rows), noise)
        total += torch.stack([prior.validation_bits(*inputs).double().sum(), torch.tensor(len(rows)).double().to(total.device)])
    bits, seen = reduced(accelerator, total, "sum").tolist()
    return bits / (seen * store.spec.t)


def export(prior: Prior, folder: Path, config: Stage2Config, store: TokenStore) -> None:
    """Write the finished prior (safetensors, config.json) and what its tokens and classes are."""
    with new_folder(folder) as aside:
        prior.save_pretrained(aside)
        write_json(aside / "tokens.json", asdict(store.identity))
        if config.prior.get("sampling"):
            write_json(aside / RECOMMENDED, config.prior["sampling"])
        write_origin(aside, config, tokens=config.tokens)


def bring_options(folder: Path, config: Stage2Config) -> None:
    """Give a finished prior the options of sampling that its configuration names now, and say so in its record.

    Raises UserError where its sampler has no such options.
    """
    record, sampling = read_json(folder / "training.json"), config.prior.get("sampling")
    trained = record.get("config", {}).get("prior")
    if trained is None or trained.get("sampling") == sampling:
        return
    require_options("config.prior.sampling", PRIORS[config.prior["name"]].options_type, sampling)
    write_json(folder / RECOMMENDED, sampling or {})
    trained["sampling"] = sampling
    write_json(folder / "training.json", record)
    print(f"{folder}: brings {sampling or 'no options'} for its sampler from now on")


def dry_run(config: Stage2Config) -> str:
    """The resolved configuration and what it costs, as text."""
    store = TokenStore(config.tokens)
    prior = new_prior(config, store)
    tokens, labels = store.batch("train", [0])
    noise = prior.draw_noise(1, generator(0))
    with FlopCounterMode(display=False) as counter:
        prior(tokens, labels, noise).backward()
    body = sum(parameter.numel() for parameter in prior.trunk.parameters())
    total = sum(parameter.numel() for parameter in prior.parameters())
    flops = counter.get_total_flops()
    return "\n".join(
        [
            to_yaml(config),
            f"prior: {total / 1e6:.2f} M parameters, {body / 1e6:.2f} M of them in the trunk",
            f"tokens: {store.spec}; {store.images('train')} images for training, {store.images('validation')} for validation",
            f"cost: about {flops / 1e9:.2f} GFLOP per image and training step, {flops * config.images / 1e15:.3g} PFLOP "
            f"in all; {config.images / config.batch_size:.0f} steps",
        ]
    )


def _on(device: torch.device, tokens: Tensor, labels: Tensor, noise: Noise) -> tuple[Tensor, Tensor, Noise]:
    return tokens.to(device), labels.to(device), {name: draws.to(device) for name, draws in noise.items()}


def _pair(values: tuple[float, ...]) -> tuple[float, float]:
    first, second = values
    return first, second
