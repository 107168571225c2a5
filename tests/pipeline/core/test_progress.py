"""Progress bars."""

from __future__ import annotations

import gc
import sys
import time

import pytest

from pipeline.core.progress import Bar, close_bars, progress_bar


@pytest.mark.parametrize("step", ["_get_free_pos", "status_printer", "refresh"])
def test_a_signal_while_a_bar_is_made_leaves_no_traceback(monkeypatch, capsys, step):
    """Python calls `__del__` of what its constructor left half made, and prints the error of it past every `except`."""

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    unseen = []
    monkeypatch.setattr(sys, "unraisablehook", unseen.append)
    with monkeypatch.context() as patch:
        patch.setattr(Bar, step, stopped)
        with pytest.raises(KeyboardInterrupt) as caught:
            progress_bar(3, "half made")
    del caught  # whose frames hold the bar
    gc.collect()
    assert unseen == []
    with progress_bar(3, "after it") as bar:
        bar.update(3)
    close_bars()
    assert "after it: 100%" in capsys.readouterr().err


def test_a_bar_that_is_forgotten_ends_its_line(capsys):
    bar = progress_bar(2, "forgotten")
    time.sleep(0.01)
    del bar
    gc.collect()
    assert capsys.readouterr().err.endswith("\n")
