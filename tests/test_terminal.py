"""What a command shows, bars on a terminal and a line per tenth of the way elsewhere, and how signals stop it."""

import io
import os
import signal
import sys

import pytest

from gmoe_ext.terminal import Interrupted, Progress, catch_signals


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(out, epochs, until, details=""):
    progress = Progress(out)
    with progress.phase("gcn", "epoch", epochs):
        for epoch in range(1, until + 1):
            progress.advance(epoch, f"loss {1 / epoch:.3f}", details)
    return out.getvalue()


def test_elsewhere_ten_lines_tell_the_way():
    lines = show(io.StringIO(), 100, 100).splitlines()
    assert len(lines) == 10
    assert lines[4].startswith("gcn        epoch 50/100  loss 0.020")


def test_the_last_epoch_before_patience_ended_it_is_printed():
    assert "epoch 37/100" in show(io.StringIO(), 100, 37).splitlines()[-1]
    assert "37/37" in show(Terminal(), 100, 37)


def test_a_terminal_gets_a_bar_with_text_and_details():
    text = show(Terminal(), 20, 20, "load 0.25 0.75")
    assert all(part in text for part in ("gcn", "epoch", "20/20", "loss 0.050", "load 0.25 0.75"))


def test_work_of_unknown_length_is_counted():
    assert "gcn        epoch 12" in show(io.StringIO(), None, 12).splitlines()[-1]
    assert "12/12" in show(Terminal(), None, 12)


def test_an_interrupted_bar_keeps_its_length():
    progress = Progress(out := Terminal())
    with pytest.raises(KeyboardInterrupt), progress.phase("gcn", "epoch", 100):
        raise KeyboardInterrupt
    assert "0/100" in out.getvalue() and "0/1 " not in out.getvalue()


def test_a_terminal_without_rich_gets_lines(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    assert show(Terminal(), 100, 100) == show(io.StringIO(), 100, 100)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_code_that_catches_every_exception_does_not_catch_a_signal(number):
    with pytest.raises(Interrupted) as interrupted, catch_signals():
        try:
            os.kill(os.getpid(), number)
        except Exception as error:
            raise ValueError("what jsonargparse makes of an error in a default") from error
    assert interrupted.value.exit_code == 128 + number
