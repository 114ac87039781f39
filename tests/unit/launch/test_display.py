from __future__ import annotations

import io
import sys

import pytest

from distqat.launch.display import LiveDisplay, PlainDisplay
from distqat.launch.progress_text import ClientStatus, ProgressFrame, RunGoal
from distqat.terminal import complain


def frame(step: int) -> ProgressFrame:
    return ProgressFrame("mlp swarm", "", 1.0, ClientStatus(step=step, loss=1.0, round=0), RunGoal(8, 40))


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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_is_complained_of_goes_above_the_panel_while_it_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rich.console import Console

    errors, shown = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    display = LiveDisplay(Console(file=shown, force_terminal=True, width=100))
    display.show(frame(3))
    complain("server 0 was lost")
    assert "server 0 was lost" in shown.getvalue()
    display.clear()
    complain("distqat run_local: no server is left")
    assert errors.getvalue() == "distqat run_local: no server is left\n"


def test_standard_error_that_is_a_file_gets_its_lines_also_while_a_panel_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rich.console import Console

    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    display = LiveDisplay(Console(file=io.StringIO(), force_terminal=True, width=100))
    display.show(frame(3))
    complain("server 0 was lost")
    display.clear()
    assert errors.getvalue() == "server 0 was lost\n"


def test_lines_become_rarer_as_a_run_goes_on() -> None:
    out = io.StringIO()
    now = 0.0
    display = PlainDisplay(out, clock=lambda: now)
    for step in range(4 * 3600):
        now = 1.0 + step
        display.show(
            ProgressFrame("mlp swarm", "", now, ClientStatus(step=step, loss=1.0, round=0), RunGoal(8, 40))
        )
    steps = [int(line.split()[1]) for line in out.getvalue().splitlines()]
    assert 150 < len(steps) < 450
    assert steps[1] == 3
    assert 4 * 3600 - steps[-1] <= 60
