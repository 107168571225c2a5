"""Runs commands as processes of their own that start in no time: forks of one process that has imported everything.

Reads one JSON request per line, forks, answers {"started": pid} and, when a process ends, {"ended": pid, "code": exit code}.
"""

import importlib
import json
import os
import runpy
import select
import signal
import sys
import traceback

import torch

from pipeline import sampling_command, tokenization  # noqa: F401  (what the commands will need)
from pipeline.core.command import run_command
from stage1_tokenizer import training as stage1_training  # noqa: F401
from stage2_prior import training as stage2_training  # noqa: F401


def main() -> None:
    """Serve until standard input closes."""
    torch.set_num_threads(1)  # a fork has no threads but its first
    answer(ready=True)
    requests = os.fdopen(0, "rb", buffering=0)
    running: set[int] = set()
    while True:
        ready, _, _ = select.select([requests], [], [], 0.01)
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.remove(pid)
                answer(ended=pid, code=os.waitstatus_to_exitcode(status))
        if ready:
            line = requests.readline()
            if not line:
                for pid in running:  # of tests that failed
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)  # nothing to tidy up: that of all these modules takes seconds
            pid = os.fork()
            if pid == 0:
                os._exit(serve(**json.loads(line)))
            running.add(pid)
            answer(started=pid)


def answer(**message: object) -> None:
    """Tell the client."""
    print(json.dumps(message), flush=True)


SEVERAL = ("stage1_tokenizer.train", "stage2_prior.train", "pipeline.tokenize_dataset")  # may be any number of processes


def serve(module: str, arguments: list[str], environment: dict[str, str], folder: str, stdout: str, stderr: str) -> int:
    """Run a command's `main` as its module would, after the file that RUN_BEFORE names; gives the exit code."""
    for descriptor, file in ((1, stdout), (2, stderr)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that a shell started in the background ignore it
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    if "RUN_BEFORE" in environment:
        runpy.run_path(environment["RUN_BEFORE"])
    try:
        run_command(importlib.import_module(module).main, several=module in SEVERAL)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    main()
