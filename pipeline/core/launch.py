"""Starting processes: the accelerator, its trackers, and arithmetic settings."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
)
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy

from pipeline.core.command import Interruption
from pipeline.core.config import to_dict
from pipeline.core.errors import UserError
from pipeline.core.rng import derive_seed

Precision = Literal["no", "bf16", "fp16"]
Tracker = Literal["none", "wandb"]


def start_accelerator(
    precision: Precision,
    tracker: Tracker,
    run: Path,
    idle_parameters: bool = False,
    shardable: bool = False,
    patience: float = 0,
) -> Accelerator:
    """An Accelerator on the GPUs, or on the CPU where there are none; as many processes as the launcher started.

    `idle_parameters`: some parameters may take no part in a step. `shardable`: the launcher may ask for FSDP2. `patience`: the
    least seconds that a process waits for the others before it gives up, where LGQ_TIMEOUT (900) is shorter. Without an
    account, wandb works offline and leaves its files in the run's folder.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_flush_denormal(True)  # the tails of a softmax underflow into denormals, which a CPU computes 3x slower
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("precision: fp16 needs a GPU; use bf16 or no")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise UserError(
            "launch: DeepSpeed takes the steps itself, so that a step that is not finite could not be left out; "
            "shard with FSDP2 instead: configs/accelerate/fsdp.yaml"
        )
    sharding = _sharding(shardable)
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)  # accelerate knows no other name
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=precision,
        log_with=None if tracker == "none" else tracker,
        project_dir=run,
        fsdp_plugin=sharding,
        # code statistics are reduced where they are computed, so there are no buffers to broadcast
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=idle_parameters),
            InitProcessGroupKwargs(timeout=_timeout(patience)),
        ],
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise UserError(
            f"launch: {launched} processes started but {accelerator.num_processes} in use; on CPUs launch with "
            "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N"
        )
    if sharding is not None and accelerator.device.type == "cpu":
        # accelerate looks at the plugin only where there are GPUs; torch shards on CPUs too, where it can be tried
        accelerator.state.fsdp_plugin = sharding
        accelerator.state.distributed_type = DistributedType.FSDP
    if accelerator.device.type == "cpu" and _threads_left_to_the_launcher():
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))
    return accelerator


def require_compiler(device: torch.device) -> None:
    """UserError where torch.compile cannot work: on a CPU it writes C++, which someone has to compile."""
    names = [os.environ[name] for name in ("CXX",) if name in os.environ] or ["g++", "clang++"]
    if device.type == "cpu" and not any(map(shutil.which, names)):
        raise UserError(f"compile: no C++ compiler ({', '.join(names)}) on this machine; install one, or set compile=false")


def _sharding(shardable: bool) -> FullyShardedDataParallelPlugin | None:
    """The launcher's FSDP2 settings, with weights and gradients passed on in float32: autocast alone sets the precision.

    (accelerate's own policy would turn the residual stream and the rotary tables into bfloat16 as well.)
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    if not shardable:
        raise UserError("launch: FSDP is for the training of priors; take configs/accelerate/eight_gpus.yaml here")
    if os.environ.get("FSDP_VERSION") != "2":
        raise UserError("launch: FSDP 1 is not supported; set fsdp_version: 2, see configs/accelerate/fsdp.yaml")
    return FullyShardedDataParallelPlugin(mixed_precision_policy=MixedPrecisionPolicy())  # pyright: ignore[reportArgumentType]


def _timeout(patience: float) -> timedelta:
    given = os.environ.get("LGQ_TIMEOUT", "900")
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 1e7:
        raise UserError(f"LGQ_TIMEOUT: {given}; give the seconds that processes wait for each other, 1 or more, up to 10000000")
    # accelerate passes its own default of 600 s not on, and gloo has another
    return timedelta(seconds=max(seconds, patience), microseconds=1)


def _threads_left_to_the_launcher() -> bool:
    """Whether the one thread is accelerate's choice: its launcher gives a process one where OMP_NUM_THREADS is unset.

    LGQ_THREADS says that it is not.
    """
    chosen = "LGQ_THREADS" in os.environ or "ACCELERATE_MIXED_PRECISION" not in os.environ
    return os.environ.get("OMP_NUM_THREADS") == "1" and not chosen


def reduced(accelerator: Accelerator, tensor: Tensor, how: Literal["sum", "mean"]) -> Tensor:
    """A tensor summed or averaged over the processes."""
    return cast(Tensor, accelerator.reduce(tensor, how))


def gathered(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """The tensors of all processes, equal in shape, one after the other along the first axis."""
    return cast(Tensor, accelerator.gather(tensor))


def require_agreement(accelerator: Accelerator, **facts: object) -> None:
    """UserError, on all processes, that names the facts in which they differ: two trainings would mix, or wait for ever."""
    mine = torch.tensor([[derive_seed(str(fact)) for fact in facts.values()]], device=accelerator.device)
    everyone = gathered(accelerator, mine)
    differing = [name for name, same in zip(facts, (everyone == everyone[0]).all(0).tolist(), strict=True) if not same]
    if differing:
        raise UserError(
            f"launch: processes differ in {', '.join(differing)}; start the same command everywhere, and let all machines see "
            "the run's folder and the data on a disk that they share"
        )


def agreed_signal(accelerator: Accelerator, interruption: Interruption, step: int) -> int:
    """The signal that stops all processes after this step, 0 for none.

    The launcher's signal reaches them in different steps, so they ask each other, every eighth step.
    """
    if accelerator.num_processes == 1:
        return interruption.signal_number
    if step % 8:
        return 0
    return int(gathered(accelerator, torch.tensor([interruption.signal_number], device=accelerator.device)).max())


def start_tracker(accelerator: Accelerator, tracker: Tracker, config: Any, run: Path) -> None:
    """Open the tracker, if one is wanted, under the run's name."""
    if tracker == "wandb":
        if not (os.environ.get("WANDB_API_KEY") or (Path.home() / ".netrc").exists()):
            os.environ.setdefault("WANDB_MODE", "offline")
        accelerator.init_trackers(
            "lgq", config=_flat(to_dict(config)), init_kwargs={"wandb": {"name": run.name, "dir": str(run)}}
        )


def _flat(values: dict[str, Any], place: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{place}{key}.")
        else:
            flat[place + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
