"""What happened in a drill and when: kept, shown while it runs, and printed as a table at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from distqat.launch.display import lines_above, redrawable
from distqat.terminal import show_through

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table


@dataclass
class Event:
    """A moment of the drill. `recovery_s`: until the next applied step of the affected pipeline(s)."""

    at_s: float
    what: str
    recovery_s: float | None = None
    awaited: bool = False  # a recovery that is still to come


@dataclass
class Timeline:
    """All events so far, and a line that says how training goes now."""

    began: float = field(default_factory=time.monotonic)
    events: list[Event] = field(default_factory=list)
    now: str = ""

    def add(self, what: str, *, awaited: bool = False) -> Event:
        """An event that happens now."""
        event = Event(time.monotonic() - self.began, what, awaited=awaited)
        self.events.append(event)
        return event

    def records(self) -> list[dict[str, Any]]:
        """All events as plain values, for `--json`."""
        return [{"at_s": e.at_s, "what": e.what, "recovery_s": e.recovery_s} for e in self.events]


def timeline_table(timeline: Timeline) -> Table:
    """Time, event, recovery."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("Time", justify="right", no_wrap=True)
    table.add_column("Event")
    table.add_column("Recovery", justify="right", no_wrap=True)
    for event in timeline.events:
        table.add_row(f"{event.at_s:.1f} s", event.what, _recovery(event))
    return table


def verdict_table(rows: Mapping[str, tuple[bool, str]]) -> Table:
    """One row per invariant: what must hold, whether it did, and the evidence."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("Invariant", "Verdict", "Evidence"):
        table.add_column(name, no_wrap=name == "Verdict")
    for name, (good, evidence) in rows.items():
        table.add_row(name, "ok" if good else "BROKEN", evidence, style=None if good else "red")
    return table


class TimelineScreen(Protocol):
    """Where a drill is watched."""

    def refresh(self, timeline: Timeline) -> None:
        """Something may have happened."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class TimelineLines:
    """For a log or a pipe: a line per event, a second one when it has recovered."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = 0
        self._waiting: list[Event] = []

    def refresh(self, timeline: Timeline) -> None:
        """Prints what is new since the last call."""
        for event in timeline.events[self._shown :]:
            self._say(f"{event.at_s:6.1f} s  {event.what}")
            if event.awaited:
                self._waiting.append(event)
        self._shown = len(timeline.events)
        for event in [event for event in self._waiting if event.recovery_s is not None]:
            self._waiting.remove(event)
            self._say(f"{'':8}  trains again after {event.recovery_s:.2f} s: {event.what}")

    def close(self) -> None:
        """Nothing to do: lines stay."""

    def _say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class TimelinePanel:
    """For a terminal: the table grows in its place, below it how training goes."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._live: Live = Live(console=console, auto_refresh=False, transient=True, redirect_stderr=False)
        self._live.start()
        lines_above(console)

    def refresh(self, timeline: Timeline) -> None:
        """Draws the table anew."""
        from rich.console import Group
        from rich.text import Text

        self._live.update(Group(timeline_table(timeline), Text(timeline.now, "dim")), refresh=True)

    def close(self) -> None:
        """The table stays on the terminal as it is."""
        self._live.stop()
        show_through(None)


def open_screen() -> TimelineScreen:
    """The screen for standard output as it is."""
    console = redrawable()
    return TimelineLines(sys.stdout) if console is None else TimelinePanel(console)


def _recovery(event: Event) -> str:
    if event.recovery_s is not None:
        return f"{event.recovery_s:.2f} s"
    return "..." if event.awaited else ""
