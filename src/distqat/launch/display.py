"""Where progress goes: a live panel in a terminal, a line every few seconds elsewhere, or nowhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TextIO, cast

from distqat.launch.progress_text import ProgressFrame, panel, plain_line
from distqat.terminal import show_through, stream

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LINE_EVERY_S = 3.0
LINES_APART = 0.02  # of the time since the start, up to a minute: a run of days does not fill a log
MOST_APART_S = 60.0


class Display(Protocol):
    """Shows the newest frame; `say` prints a line that stays."""

    def say(self, line: str) -> None: ...
    def show(self, frame: ProgressFrame) -> None: ...
    def clear(self) -> None:
        """Leave the terminal as it was; the next frame, if any, begins anew."""

    def table(self, what: RenderableType) -> None: ...


class PlainDisplay:
    """Lines. progress: print frames too, at most one every `LINE_EVERY_S`, and fewer as time goes on."""

    def __init__(
        self, stream: TextIO, *, progress: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._progress = progress
        self._clock = clock
        self._shown = ("", -LINE_EVERY_S)

    def say(self, line: str) -> None:
        """Prints a line."""
        print(line, file=self._stream, flush=True)

    def show(self, frame: ProgressFrame) -> None:
        """Prints the frame as a line, if it differs and the last line is some seconds old."""
        line, now = plain_line(frame), self._clock()
        before, at = self._shown
        apart = max(LINE_EVERY_S, min(MOST_APART_S, LINES_APART * frame.elapsed_s))
        if self._progress and line != before and now - at >= apart:
            self._shown = (line, now)
            self.say(line)

    def clear(self) -> None:
        """The next frame is printed whatever was printed before."""
        self._shown = ("", -LINE_EVERY_S)

    def table(self, what: RenderableType) -> None:
        """Prints a table without colours."""
        from rich.console import Console

        Console(file=self._stream, width=110, soft_wrap=True).print(what)
        self._stream.flush()


class LiveDisplay:
    """A panel at the bottom of the terminal; lines, also those of `complain`, scroll above it."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._new: Callable[[], Live] = lambda: Live(
            console=console, auto_refresh=False, transient=True, redirect_stderr=False
        )
        self._live: Live | None = None

    def say(self, line: str) -> None:
        """Prints a line above the panel."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, frame: ProgressFrame) -> None:
        """Draws the panel."""
        if self._live is None:
            self._live = self._new()
            self._live.start()
            lines_above(self._console)
        self._live.update(panel(frame), refresh=True)

    def clear(self) -> None:
        """Takes the panel away."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            show_through(None)

    def table(self, what: RenderableType) -> None:
        """Prints a table."""
        self._console.print(what)


def lines_above(console: Console) -> None:
    """Have lines on standard error scroll above the panel of `console`, until `show_through(None)`."""
    if stream().isatty():
        from rich.file_proxy import FileProxy

        show_through(cast(TextIO, FileProxy(console, stream())))


def open_display(progress: bool) -> Display:
    """The display for standard output as it is."""
    console = redrawable() if progress and sys.stdout.isatty() else None
    return PlainDisplay(sys.stdout, progress=progress) if console is None else LiveDisplay(console)


def redrawable() -> Console | None:
    """Standard output where it is a terminal whose lines can be drawn again; else None."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal and not console.is_dumb_terminal else None
