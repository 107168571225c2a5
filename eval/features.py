"""From batches of images to features, and the reference set that generated images are compared with.

Whatever the batches, the network sees the same chunks of `CHUNK` images, so the features do not depend on the batch size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from eval.extractors import Extractor
from eval.metrics import Moments, combine, moments
from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes
from pipeline.core.progress import progress_bar

CHUNK = 32  # images at a time: larger ones leave the CPU's caches and take longer per image
MOMENT_CHUNKS = 64  # chunks whose features become one set of moments
KEPT = 10_000  # features of a reference that are kept one by one, for KID, precision, recall and the probe
VERSION = 1  # raise it when the same images would get other features or moments

ImageBatches = Iterable[UInt8[Tensor, "b 3 y x"]]
LabelledBatches = Iterable[tuple[UInt8[Tensor, "b 3 y x"], Int[Tensor, "b"]]]


@dataclass(frozen=True)
class Features:
    """Pooled features and logits of n images, float32, in the order of the images."""

    pool: Float[Tensor, "n f"]
    logits: Float[Tensor, "n k"]

    def __len__(self) -> int:
        return len(self.pool)


@dataclass(frozen=True)
class Reference:
    """Real images as the metrics need them: the moments of all n, the features and labels of the first of them.

    `id` is a hash of `key`, which says what the images are: the source's fingerprint, split, number, size, order and extractor.
    """

    id: str
    key: dict[str, Any]
    moments: Moments
    features: Features
    labels: Int[Tensor, "n"]

    def describe(self) -> dict[str, Any]:
        """What a result file records."""
        return {"id": self.id, "n": self.moments.n, "kept": len(self.features), **self.key}


def extract(batches: ImageBatches, extractor: Extractor, total: int, description: str) -> Features:
    """The features of `total` images; UserError where there are fewer than two."""
    pools, logits = [], []
    for pool, logit in _measure(rechunk(batches, CHUNK), extractor, total, description):
        pools.append(pool)
        logits.append(logit)
    if sum(map(len, pools)) < 2:
        raise UserError(f"{description}: {sum(map(len, pools))} images; metrics need at least two")
    return Features(torch.cat(pools), torch.cat(logits))


def reference(
    cache: Path,
    key: dict[str, Any],
    batches: Callable[[], LabelledBatches],
    extractor: Extractor,
    total: int,
    keep: int = KEPT,
) -> Reference:
    """The reference of that key, from the cache folder or measured and put there.

    `batches` gives the images in random order, so that the first `keep`, whose features are kept, are a fair sample.
    """
    full_key = {**key, "extractor": extractor.describe(), "version": VERSION}
    identity = hashlib.sha256(json.dumps(full_key, sort_keys=True).encode()).hexdigest()[:16]
    path = cache / f"reference-{identity}.safetensors"
    found = _read(path, identity, key)
    if found is None:
        found = _measure_reference(identity, key, batches(), extractor, total, keep)
        _write(path, found)
    return found


def rechunk(batches: ImageBatches, size: int) -> Iterator[UInt8[Tensor, "b 3 y x"]]:
    """The same images in batches of `size`, the last one smaller."""
    waiting: list[Tensor] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= size:
            *full, rest = torch.cat(waiting).split(size)
            whole = len(rest) == size
            yield from [*full, rest] if whole else full
            waiting = [] if whole else [rest]
    if waiting:
        yield torch.cat(waiting)


def _measure(
    chunks: Iterable[Tensor], extractor: Extractor, total: int, description: str
) -> Iterator[tuple[Float[Tensor, "b f"], Float[Tensor, "b k"]]]:
    device = next(extractor.parameters()).device
    with progress_bar(total, description) as bar:
        for chunk in chunks:
            if chunk.dtype != torch.uint8:
                raise TypeError(f"{description}: images of type {chunk.dtype}; the metrics take uint8")
            with torch.inference_mode():
                pool, logits = (out.float().cpu() for out in extractor(chunk.to(device)))
            # inference tensors cannot take part in autograd, and the probe is trained on these
            yield pool.clone(), logits.clone()
            bar.update(len(chunk))


def _measure_reference(
    identity: str, key: dict[str, Any], batches: LabelledBatches, extractor: Extractor, total: int, keep: int
) -> Reference:
    labels: list[Tensor] = []

    def images() -> Iterator[Tensor]:
        for batch, label in batches:
            labels.append(label)
            yield batch

    parts, kept_pools, kept_logits, waiting, kept = [], [], [], [], 0
    for pool, logits in _measure(rechunk(images(), CHUNK), extractor, total, "features of the reference"):
        if kept < keep:
            kept_pools.append(pool)
            kept_logits.append(logits)
            kept += len(pool)
        waiting.append(pool)
        if len(waiting) == MOMENT_CHUNKS:
            parts.append(moments(torch.cat(waiting)))
            waiting = []
    if waiting:
        parts.append(moments(torch.cat(waiting)))
    if sum(part.n for part in parts) < 2:
        raise UserError(f"reference: {sum(part.n for part in parts)} images; metrics need at least two")
    features = Features(torch.cat(kept_pools)[:keep], torch.cat(kept_logits)[:keep])
    return Reference(identity, key, combine(parts), features, torch.cat(labels)[: len(features)])


def _write(path: Path, measured: Reference) -> None:
    tensors = {
        "mean": measured.moments.mean,
        "covariance": measured.moments.covariance,
        "pool": measured.features.pool,
        "logits": measured.features.logits,
        "labels": measured.labels,
    }
    content = save(tensors, metadata={"id": measured.id, "n": str(measured.moments.n)})
    write_bytes(path, content)


def _read(path: Path, identity: str, key: dict[str, Any]) -> Reference | None:
    """What the cache holds; None where it holds nothing, or nothing whole."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    except (FileNotFoundError, SafetensorError):
        return None
    if about.get("id") != identity:
        return None
    measured = Moments(int(about["n"]), tensors["mean"], tensors["covariance"])
    return Reference(identity, key, measured, Features(tensors["pool"], tensors["logits"]), tensors["labels"])
