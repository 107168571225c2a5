"""Progress bars."""

from __future__ import annotations

import gc
import sys
import time

import pytest
from tqdm import tqdm

from pipeline.core.progress import close_bars, progress_bar


def stopped(*arguments, **options):
    raise KeyboardInterrupt


def stopped_afterwards(action):
    def act(*arguments, **options):
        action(*arguments, **options)
        raise KeyboardInterrupt

    return act


def interrupted(monkeypatch, action, step, replacement) -> list[object]:
    """Act while the step of a bar is replaced, as the handler of a signal would; gives the errors past every `except`."""
    unseen = []
    monkeypatch.setattr(sys, "unraisablehook", unseen.append)
    with monkeypatch.context() as patch:
        patch.setattr(f"tqdm.std.{step}", replacement)
        try:
            action()
        except KeyboardInterrupt:
            close_bars()
        else:
            pytest.fail("not interrupted")
    gc.collect()  # Python calls `__del__` of what its constructor left half made
    return unseen


@pytest.mark.parametrize("make", [lambda: progress_bar(3, "half made"), lambda: tqdm(total=3, desc="half made")])
@pytest.mark.parametrize("step", ["tqdm._get_free_pos", "tqdm.status_printer", "tqdm.refresh", "time"])  # in their order
def test_a_signal_while_a_bar_is_made_leaves_no_traceback(monkeypatch, capsys, make, step):
    assert interrupted(monkeypatch, make, step, stopped) == []
    with progress_bar(3, "after it") as bar:
        bar.update(3)
    close_bars()
    assert "after it: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("make", [lambda: progress_bar(3, "drawn"), lambda: tqdm(total=3, desc="drawn")])
def test_a_bar_that_was_drawn_before_the_signal_ends_its_line(monkeypatch, capsys, make):
    assert interrupted(monkeypatch, make, "tqdm.refresh", stopped_afterwards(tqdm.refresh)) == []
    assert capsys.readouterr().err.endswith("\n")


@pytest.mark.parametrize("replacement", [stopped, stopped_afterwards(tqdm.display)], ids=["before", "after"])
def test_a_bar_that_a_signal_interrupts_at_its_end_ends_its_line(monkeypatch, capsys, replacement):
    bar = progress_bar(3, "drawn")
    assert interrupted(monkeypatch, bar.close, "tqdm.display", replacement) == []
    assert capsys.readouterr().err.endswith("\n")


def test_a_bar_that_is_forgotten_ends_its_line(capsys):
    bar = progress_bar(2, "forgotten")
    time.sleep(0.01)
    del bar
    gc.collect()
    assert capsys.readouterr().err.endswith("\n")
