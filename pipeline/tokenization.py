"""Encoding a data set into a token store, shard by shard, over as many processes as were launched."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.api import find_runs, load_tokenizer, tokenizer_folder, weights_sha256
from pipeline.core.command import Interrupted, Interruption
from pipeline.core.config import load_config
from pipeline.core.data.images import ImageData, OrderedImages, UnreadableImages, ordered_batches
from pipeline.core.data.sources import load_data
from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.core.launch import Precision, start_accelerator
from pipeline.core.progress import progress_bar
from pipeline.core.token_parts import mark_part
from pipeline.core.token_store import PART, Shard, TokenIdentity, TokenStoreWriter, shards_of
from stage1_tokenizer.tokenizer import Tokenizer

VALUES_AT_ONCE = 1 << 14
LARGEST_TABLES = 1 << 28  # numbers: 1 GB
A_DAY = 86400.0  # seconds


@dataclass(frozen=True)
class Job:
    """What to encode with what, and where to; None stands for what the last command left."""

    tokenizer: Path | None
    data: str | None
    settings: tuple[str, ...]
    out: Path | None
    batch_size: int
    shard_images: int
    mirrored: bool
    precision: Precision
    workers: int
    max_unreadable: float
    part: tuple[int, int] = (1, 1)  # k of n: shards k, k + n, k + 2 n, …


@dataclass(frozen=True)
class DataSettings:
    """The data to encode, as a component."""

    data: dict[str, Any] = field(default_factory=dict)


def tokenize(job: Job, dry_run: bool = False) -> None:
    """Encode both splits of a data set, or a part of their shards; shards that exist are kept."""
    tokenizer_path = job.tokenizer or newest_tokenizer()
    number, parts = job.part
    out = job.out or tokenizer_path.parent / ("tokens" if parts == 1 else f"tokens_{number}_of_{parts}")
    tokenizer = load_tokenizer(tokenizer_path)
    settings = data_settings(job, tokenizer_folder(tokenizer_path))
    data = load_data(**settings)
    identity = TokenIdentity(
        spec=tokenizer.spec.to_dict(),
        tokenizer=str(tokenizer_path),
        tokenizer_sha256=weights_sha256(tokenizer_folder(tokenizer_path)),
        data=settings,
        data_fingerprint=data.fingerprint,
        preprocessing=f"shorter side to {tokenizer.spec.image_size[0]}, centre crop (ADM), precision {job.precision}",
        mirrored=job.mirrored,
        shard_images=job.shard_images,
        class_names=list(data.class_names),
        class_ids=list(data.class_ids),
        groups=list(data.groups),
    )
    splits = {"train": data.train, "validation": data.validation}
    images = {name: len(split) for name, split in splits.items()}
    all_shards = shards_of(images, job.shard_images)
    shards = all_shards[number - 1 :: parts]
    if dry_run:
        counts = ", ".join(f"{count} images of {name}" for name, count in images.items())
        print(f"{tokenizer_path} -> {out}\n{counts}; {len(shards)} of {len(all_shards)} shards\n{tokenizer.spec}")
        return
    # a process whose shards are there waits until the others' are too
    accelerator = start_accelerator(job.precision, "none", out, patience=A_DAY)
    writer = TokenStoreWriter(out, identity)
    marked, missing = False, list[Shard]()
    if accelerator.is_main_process:
        writer.open()
        missing = [shard for shard in shards if not writer.has(shard.split, shard.number)]
        if missing and parts > 1 and writer.finished():
            raise UserError(f"{out}: a whole store, no part; choose another --out, or mend it without --part")
        if parts == 1 and (out / PART).exists():
            raise UserError(f"{out}: a part of a store; choose another --out, or go on with --part")
        marked = writer.finished() or (parts > 1 and (out / PART).exists())
    # one process looks for all: the others' disks may show a shard later
    marked, missing = broadcast_object_list([marked, missing])
    if marked and not missing:
        accelerator.print(f"{out}: finished before; delete it to tokenize anew")
        return
    if accelerator.is_main_process:
        writer.reopen()
    tokenizer.to(accelerator.device)  # pyright: ignore[reportArgumentType]
    encode_shards(job, tokenizer, writer, data, missing, accelerator)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        # from the gaps, so that those in shards of an earlier, interrupted command are named too
        unreadable = [image_name(split, row) for name, split in splits.items() for row in writer.missing(name, len(split))]
        note = f", {len(unreadable)} unreadable ones left out" if unreadable else ""
        vectors = code_vectors(tokenizer)
        if parts == 1:
            store = writer.finish(unreadable, vectors)
            print(f"{out}: {store.images('train')} + {store.images('validation')} images, {store.spec}{note}")
        else:
            if vectors is not None:
                writer.write_code_vectors(vectors)
            mark_part(out, images, unreadable)
            print(f"{out}: {len(shards)} of {len(all_shards)} shards{note}; join all {parts} parts with --merge")
    accelerator.end_training()


def encode_shards(
    job: Job,
    tokenizer: Tokenizer,
    writer: TokenStoreWriter,
    data: ImageData,
    shards: Sequence[Shard],
    accelerator: Accelerator,
) -> None:
    """Encode this process's share of the shards.

    Memory is that of a shard. Raises Interrupted after SIGINT or SIGTERM, between batches.
    """
    interruption = Interruption()
    tally = UnreadableImages(job.max_unreadable)
    total = sum(shard.stop - shard.start for shard in shards)
    bar = progress_bar(total, "tokenize", enabled=accelerator.is_main_process)
    size = tokenizer.spec.image_size[0]
    splits = {
        "train": OrderedImages(data.train, size, keep=False),
        "validation": OrderedImages(data.validation, size, keep=False),
    }
    for number, shard in enumerate(shards):
        if number % accelerator.num_processes != accelerator.process_index:
            bar.update(shard.stop - shard.start)
            continue
        nothing = torch.empty(0, tokenizer.spec.t, tokenizer.spec.d, dtype=torch.int64)
        columns = [[nothing], [nothing], [nothing[:, 0, 0]], [nothing[:, 0, 0]]]
        for batch in ordered_batches(splits[shard.split], job.batch_size, shard.start, shard.stop, job.workers):
            if interruption.signal_number:
                bar.close()
                raise Interrupted(interruption.signal_number)
            tally.update(batch)
            if not len(batch["label"]):
                continue
            pixels = batch["image"].to(accelerator.device).float() / 127.5 - 1
            with accelerator.autocast():
                tokens = tokenizer.encode(pixels)
                mirrored = tokenizer.encode(pixels.flip(-1)) if job.mirrored and shard.split == "train" else tokens
            for column, values in zip(columns, (tokens, mirrored, batch["label"], batch["index"]), strict=True):
                column.append(values.cpu())
            bar.update(len(batch["label"]))
        writer.write(shard.split, shard.number, *map(joined, columns))
    bar.close()
    if interruption.signal_number:  # that came in the last shard
        raise Interrupted(interruption.signal_number)


@torch.no_grad()
def code_vectors(tokenizer: Tokenizer) -> list[Float[Tensor, "_k _c"]] | None:
    """What each value of each index stands for, the other indices at 0: what priors with heads of code vectors are made of.

    Channels that an index does not move are left out: a table is that of its own codes where indices add up (residual) or
    have channels of their own (product, bits). None where the tables would be larger than LARGEST_TABLES.
    """
    quantizer, spec, device = tokenizer.quantizer, tokenizer.spec, tokenizer.device
    if sum(spec.sizes) * quantizer.dim > LARGEST_TABLES:
        return None
    cell = (1, 1)
    positions = sum(h * w for h, w in quantizer.scales(cell))
    tables = []
    for j, size in enumerate(spec.sizes):
        parts = []
        for values in torch.arange(size, device=device).split(VALUES_AT_ONCE):
            indices = torch.zeros(len(values), positions, spec.d, dtype=torch.int64, device=device)
            indices[..., j] = values[:, None]
            parts.append(quantizer.dequantize(indices, cell)[:, 0, 0].float())
        table = torch.cat(parts)
        moved = (table != table[0]).any(0)
        tables.append(table[:, moved] if moved.any() else table[:, :1])
    return tables


def image_name(split: datasets.Dataset, row: int) -> str:
    """An image's file, or its number where it has none."""
    return split[row]["image"]["path"] or f"image {row}"


def joined(parts: Iterable[Tensor]) -> Int[Tensor, "..."]:
    """Batches one after the other."""
    return torch.cat(list(parts))


def newest_tokenizer() -> Path:
    """The newest finished tokenizer below `runs`."""
    runs = find_runs("runs", "tokenizer")
    if not runs:
        raise UserError("runs: no finished tokenizer; train one with accelerate launch stage1_tokenizer/train.py")
    return runs[0]


def data_settings(job: Job, tokenizer: Path) -> dict[str, Any]:
    """The data that was asked for, or that the tokenizer was trained on."""
    if job.data is None and not (tokenizer / "training.json").exists():
        raise UserError(f"{tokenizer}: does not say what data it was trained on; give --data")
    given = job.data or read_json(tokenizer / "training.json")["data"]
    path_free = [setting for setting in job.settings if not setting.startswith("data.")]
    if path_free:
        raise UserError(f"{path_free[0]}: not an option of the data; write data.option=value")
    if isinstance(given, str):
        return load_config(DataSettings, None, [f"data={given}", *job.settings]).data
    # as JSON, which is YAML: a path may hold what YAML reads otherwise, and None is not a text
    name, options = given["name"], [f"data.{key}={json.dumps(value)}" for key, value in given.items() if key != "name"]
    return load_config(DataSettings, None, [f"data={name}", *options, *job.settings]).data
