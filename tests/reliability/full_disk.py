"""Lets a command find its disk full (RUN_BEFORE of the command server).

LARGEST_FILE: how many bytes a file may hold. FULL_AT: from the first step of a training on that begins with as many images
seen; from the start where it is not given.
"""

import os
import resource

from pipeline.core.step_guard import StepGuard

note = StepGuard.note


def fill():
    size = int(os.environ["LARGEST_FILE"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def noted(guard, good, terms, images_seen, rate):
    if images_seen >= int(os.environ["FULL_AT"]):
        fill()
    note(guard, good, terms, images_seen, rate)


if "FULL_AT" in os.environ:
    setattr(StepGuard, "note", noted)  # noqa: B010
else:
    fill()
