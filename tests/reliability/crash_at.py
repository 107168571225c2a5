"""Ends this process as `kill -9` would, at a stated place (RUN_BEFORE of the command server).

CRASH_EVENT=n: before the n-th change of a file or folder below CRASH_UNDER, counted from 0; CRASH_COUNT names a file that gets
the number of changes. CRASH_BYTE=n: in the middle of a write, when a file would grow beyond n bytes.
"""

import os
import resource
import signal
import sys
from typing import Any

import safetensors.torch

sys.path.append(os.path.dirname(__file__))  # for crash_writers.py
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
under = os.path.abspath(os.environ["CRASH_UNDER"])
last = int(os.environ.get("CRASH_EVENT", "-1"))
seen = 0
count = os.open(os.environ["CRASH_COUNT"], os.O_WRONLY | os.O_CREAT) if "CRASH_COUNT" in os.environ else None


def watch(event, arguments):
    writes = event == "open" and isinstance(arguments[0], (str, bytes)) and arguments[2] & WRITING
    if not (writes or event in CHANGES) or not os.path.abspath(os.fsdecode(arguments[0])).startswith(under):
        return
    change()


def change():
    global seen
    if seen == last:
        os.kill(os.getpid(), signal.SIGKILL)
    seen += 1
    if count is not None:
        os.pwrite(count, str(seen).encode(), 0)


def counted(write):
    def writing(*arguments, **named):
        change()  # no audit event: it is written in Rust
        write(*arguments, **named)

    return writing


if "CRASH_BYTE" in os.environ:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["CRASH_BYTE"]), resource.RLIM_INFINITY))
else:
    writers: Any = safetensors.torch
    writers.serialize_file = counted(writers.serialize_file)
    sys.addaudithook(watch)
