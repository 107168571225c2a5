"""Holds a command where it is to be stopped until the signal has come, however late (RUN_BEFORE of the command server).

HOLD_AT says where: "48" in the first step of a training that begins with 48 images or more seen, "train/2" before that shard is
written. What is computed does not change.
"""

import os
import time

from pipeline.core.command import Interruption
from pipeline.core.step_guard import StepGuard
from pipeline.core.token_store import TokenStoreWriter

AT = os.environ["HOLD_AT"]
LONGEST = 120  # seconds: the test has failed
interruptions = []
remember, note, write = Interruption.__init__, StepGuard.note, TokenStoreWriter.write


def remembered(interruption):
    remember(interruption)
    interruptions.append(interruption)


def hold():
    end = time.monotonic() + LONGEST
    while not any(interruption.signal_number for interruption in interruptions):
        assert time.monotonic() < end, f"held at {AT}, and no signal came"
        time.sleep(0.002)


def noted(guard, good, terms, images_seen, rate):
    if AT.isdigit() and images_seen >= int(AT):
        hold()
    note(guard, good, terms, images_seen, rate)


def written(writer, split, shard, *columns):
    if f"{split}/{shard}" == AT:
        hold()
    write(writer, split, shard, *columns)


setattr(Interruption, "__init__", remembered)  # noqa: B010
setattr(StepGuard, "note", noted)  # noqa: B010
setattr(TokenStoreWriter, "write", written)  # noqa: B010
