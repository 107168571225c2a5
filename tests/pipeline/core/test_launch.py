from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch

from pipeline.core import command
from pipeline.core.command import Interrupted, Interruption, run_command, training_parser
from pipeline.core.errors import UserError
from pipeline.core.launch import _timeout, agreed_signal, start_accelerator


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


SMALLER = "take fewer images at a time (batch_size, micro_batch), a smaller model, or a larger machine"


@pytest.mark.parametrize(
    "main, code, said",
    [
        (lambda: None, 0, ""),
        (raising(UserError("place: value; remedy")), 2, "error: place: value; remedy\n"),
        (raising(Interrupted(signal.SIGTERM)), 143, "stopped by SIGTERM; run the same command again to go on\n"),
        (raising(Interrupted(signal.SIGINT)), 130, "stopped by SIGINT; run the same command again to go on\n"),
        (raising(KeyboardInterrupt()), 130, "stopped; run the same command again to go on\n"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 143, "stopped by SIGTERM; run the same command again to go on\n"),
        (lambda: torch.empty(2**58), 2, f"error: out of memory: {2**60} bytes asked for at once; {SMALLER}\n"),
        (lambda: np.empty(2**58), 2, f"error: out of memory: 2.00 EiB asked for at once; {SMALLER}\n"),
        (raising(MemoryError()), 2, f"error: out of memory: no more to be had; {SMALLER}\n"),
        (raising(RuntimeError("CUDA error: out of memory")), 2, f"error: out of memory: no more to be had; {SMALLER}\n"),
        (raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")), 2,
         f"error: out of memory: 2.00 GiB asked for at once; {SMALLER}\n"),
    ],
)
def test_exit_codes(capsys, monkeypatch, handlers, main, code, said):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert (stop.value.code, capsys.readouterr().err) == (code, said)


def test_commands_that_work_as_one_process_are_not_started_as_several(capsys, monkeypatch, handlers):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for several, code in ((False, 2), (True, 0)):
        with pytest.raises(SystemExit) as stop:
            run_command(lambda: None, several)
        assert stop.value.code == code
    said = "error: launch: 2 processes would all do the same; start this command without a launcher\n"
    assert capsys.readouterr().err == said


def test_other_processes_say_which_they_are(capsys, monkeypatch, handlers):
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit):
        run_command(raising(UserError("x")))
    assert capsys.readouterr().err == "process 3: error: x\n"


def test_an_error_of_ours_keeps_its_traceback(handlers):
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: print(1 / 0))


@pytest.mark.parametrize(
    "ending, said, code",
    [
        (KeyboardInterrupt(), "stopped; run the same command again to go on\n", 130),
        (UserError("place: value; remedy"), "error: place: value; remedy\n", 2),
    ],
)
def test_a_signal_while_the_message_is_written_changes_nothing(capsys, monkeypatch, handlers, ending, said, code):
    monkeypatch.delenv("RANK", raising=False)

    def signalled():
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(command, "close_bars", signalled)
    with pytest.raises(SystemExit) as stop:
        run_command(raising(ending))
    assert (stop.value.code, capsys.readouterr().err) == (code, said)


def test_a_signal_is_remembered_and_an_equal_second_one_stops_at_once(handlers, monkeypatch, tmp_path):
    now = 100.0
    monkeypatch.setattr(command, "monotonic", lambda: now)
    interruption = Interruption()
    accelerator = start_accelerator("no", "none", tmp_path)
    assert agreed_signal(accelerator, interruption, 1) == 0
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)  # a launcher that died of the first one
    assert agreed_signal(accelerator, interruption, 1) == signal.SIGTERM
    now += 1.9
    os.kill(os.getpid(), signal.SIGTERM)  # the launcher that died of the same one
    now += 0.2
    with pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Interrupted):  # nobody repeats a Ctrl-C but who means it
        os.kill(os.getpid(), signal.SIGINT)


def test_options_and_settings_come_in_any_order():
    parser = training_parser("", "default.yaml", "")
    words = ["a=1", "--dry-run", "b=2", "--config", "x.yaml", "c=3"]
    parsed = parser.parse_intermixed_args(words)
    assert (parsed.config, parsed.dry_run, parsed.settings) == ("x.yaml", True, ["a=1", "b=2", "c=3"])


def test_launches_that_would_train_twice_are_refused(monkeypatch, tmp_path):
    start_accelerator("no", "none", tmp_path)  # alone
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes started but 1 in use"):
        start_accelerator("no", "none", tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_fp16_needs_a_gpu(tmp_path):
    with pytest.raises(UserError, match="precision: fp16 needs a GPU; use bf16 or no"):
        start_accelerator("fp16", "none", tmp_path)


@pytest.mark.parametrize("seconds", ["soon", "0", "-5", "nan", "1e9"])
def test_a_time_to_wait_is_a_number_of_seconds(monkeypatch, tmp_path, seconds):
    monkeypatch.setenv("LGQ_TIMEOUT", seconds)
    with pytest.raises(UserError, match=f"LGQ_TIMEOUT: {seconds}; give the seconds that processes wait for each other"):
        start_accelerator("no", "none", tmp_path)


@pytest.mark.parametrize("given, least, waits", [(None, 0, 900), ("60", 0, 60), ("60", 86400, 86400), ("1e6", 86400, 1e6)])
def test_who_has_to_wait_long_does_so_whatever_the_timeout(monkeypatch, given, least, waits):
    monkeypatch.delenv("LGQ_TIMEOUT", raising=False)
    if given is not None:
        monkeypatch.setenv("LGQ_TIMEOUT", given)
    assert _timeout(least).total_seconds() == pytest.approx(waits, abs=1e-3)


def test_deepspeed_is_refused_for_what_does_the_same(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match=r"DeepSpeed takes the steps itself.*configs/accelerate/fsdp.yaml"):
        start_accelerator("no", "none", tmp_path, shardable=True)


GLOO = "[/__w/pytorch/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1. This may indicate\nmore"


def test_a_port_that_is_taken_is_no_lost_process(capsys, monkeypatch, handlers):
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("RANK", "0")
    said = "The server socket has failed to listen on any local network address. port: 29500, code: -98, name: EADDRINUSE"
    with pytest.raises(SystemExit) as stop:
        run_command(raising(torch.distributed.DistNetworkError(said)), several=True)
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("error: launch: port 29500 is taken")


@pytest.mark.parametrize(
    "error, reason",
    [
        (RuntimeError(GLOO), "Connection closed by peer [127.0.0.1]:1"),
        (torch.distributed.DistStoreError("Timed out after 3 seconds"), "Timed out after 3 seconds"),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), "NCCL error: remote process exited"),
    ],
)
def test_a_lost_process_is_told_in_one_line(capsys, monkeypatch, handlers, error, reason):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as stop:
        run_command(raising(error))
    said = f"process 1: stopped: another process has ended or does not answer ({reason}); see what it said, then run the same "
    assert (stop.value.code, capsys.readouterr().err) == (3, said + "command again to go on\n")


def test_any_other_error_of_torch_keeps_its_traceback(handlers):
    with pytest.raises(RuntimeError, match="shapes"):
        run_command(raising(RuntimeError("shapes")))
