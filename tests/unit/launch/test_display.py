from __future__ import annotations

import io
import logging
import sys

from distqat.launch.display import LiveDisplay, PlainDisplay
from distqat.launch.progress import Frame, Goal, Reading


def frame(step: int) -> Frame:
    return Frame("mlp swarm", "", 1.0, Reading(step=step, loss=1.0, round=0), Goal(8, 40))


def test_plain_progress_is_a_line_every_few_seconds() -> None:
    times = iter([0.0, 0.5, 2.9, 3.1, 7.0, 10.0])
    out = io.StringIO()
    display = PlainDisplay(out, clock=lambda: next(times))
    for step in (1, 2, 3, 4, 4, 5):
        display.show(frame(step))
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["1", "4", "5"]


def test_without_progress_only_what_is_said_is_printed() -> None:
    out = io.StringIO()
    display = PlainDisplay(out, progress=False)
    display.show(frame(1))
    display.say("first step after 3.2 s")
    assert out.getvalue() == "first step after 3.2 s\n"


def test_a_new_run_prints_its_first_line_at_once() -> None:
    out = io.StringIO()
    display = PlainDisplay(out, clock=lambda: 5.0)
    display.show(frame(1))
    display.clear()
    display.show(frame(1))
    assert out.getvalue().count("step 1 ") == 2


def test_the_live_panel_leaves_the_terminal_as_it_was() -> None:
    from rich.console import Console

    out = io.StringIO()
    before = sys.stderr
    display = LiveDisplay(Console(file=out, force_terminal=True, width=100))
    display.show(frame(3))
    display.say("server 0 [was] restarted")  # no markup in it
    display.show(frame(4))
    display.clear()
    display.clear()
    shown = out.getvalue()
    assert "server 0 [was] restarted" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is back
    assert sys.stderr is before


def test_log_records_go_above_the_panel_while_it_is_there() -> None:
    from rich.console import Console

    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(handler)
    try:
        display = LiveDisplay(Console(file=io.StringIO(), force_terminal=True, width=100))
        display.show(frame(3))
        while_shown = handler.stream
        assert while_shown is sys.stderr
        display.clear()
        assert handler.stream is sys.stderr is not while_shown
    finally:
        logging.getLogger().removeHandler(handler)
