"""What a run shows: bars on a terminal, a line per tenth of the way elsewhere."""

import io

from gmoe_ext.train.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(out, epochs, until, load=None):
    progress = Progress(out)
    with progress.phase("gcn", epochs):
        for epoch in range(1, until + 1):
            progress.epoch(epoch, 1 / epoch, epoch / epochs, load)
    return out.getvalue()


def test_elsewhere_ten_lines_tell_the_way():
    lines = show(io.StringIO(), 100, 100).splitlines()
    assert len(lines) == 10
    assert lines[4].startswith("gcn        epoch 50/100  loss 0.020  val 0.500")


def test_the_last_epoch_before_patience_ended_it_is_told():
    assert "epoch 37/100" in show(io.StringIO(), 100, 37).splitlines()[-1]


def test_a_terminal_gets_a_bar_with_scores_and_load():
    text = show(Terminal(), 20, 20, load=[0.25, 0.75])
    assert all(part in text for part in ("gcn", "20/20", "loss 0.050", "val 1.000", "load 0.25 0.75"))


def test_no_evaluation_yet_shows_no_score():
    progress = Progress(out := io.StringIO())
    with progress.phase("gcn", 1):
        progress.epoch(1, 0.5, None, None)
    assert "val" not in out.getvalue()
