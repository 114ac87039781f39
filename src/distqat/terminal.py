"""The terminal of a person who started this program: Ctrl-C is one line there, and libraries write nothing.

Libraries write to standard error as they please: warnings, log records, lines of C++. In a program that
called `keep_clean`, descriptor 2 and with it `sys.stderr` lead to a log; its own lines go to the terminal by
`complain`. This module is the first that a program imports, so it imports almost nothing itself: until
`begin` is called, Ctrl-C is an exception with a traceback.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # as in typing, which takes a while to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType
    from typing import NoReturn, TextIO

INTERRUPTED = 130  # exit code of a program that Ctrl-C ended, as shells know it


class _Kept:
    """Where the lines of this process go; one that is forked from it has none of this."""

    def __init__(self, terminal: TextIO, spool: int) -> None:
        self.owner = os.getpid()
        self.terminal = terminal
        self.spool = spool
        """What libraries wrote before `log_to`, and what children that were started before it write."""
        self.copied = 0  # bytes of the spool that are in the log
        self.log: Path | None = None


_kept: _Kept | None = None
_through: tuple[int, TextIO] | None = None  # what stands before the terminal while this process shows a panel
_undo: list[tuple[int, Callable[[], object]]] = []


def begin(program: str, *, clean: bool = True) -> None:
    """First of all in a program that a person starts, before it imports anything that is slow.

    `clean`: not of a role, whose terminal is its log.
    """
    leave_on_interrupt(program)
    from distqat.environment import prepare

    prepare()  # which may start this program again, and that one needs the terminal as it is
    if clean:
        keep_clean()

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        from distqat.failures import describe

        if isinstance(error, ModuleNotFoundError):
            complain(f"distqat {program}: {error}; run `make setup` first, or pip install .")
            return
        sys.__excepthook__(kind, error, trace)
        if (log := kept_log()) is not None:
            complain(f"see {log}")
        complain(f"distqat {program}: {describe(error)}")

    sys.excepthook = uncaught


def leave_on_interrupt(program: str) -> None:
    """From here on SIGINT is one line and exit code 130, at once; until an event loop takes it over.

    What a program imports takes seconds, and Python would raise an exception in the middle of that. Main
    thread only.
    """

    def leave(signum: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for owner, undo in reversed(_undo):
            if owner == os.getpid():
                undo()
        number = _kept.terminal.fileno() if _kept is not None and _kept.owner == os.getpid() else 2
        os.write(number, f"distqat {program}: interrupted\n".encode())
        os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, leave)


def unwinding(program: str, call: Callable[[], int]) -> int:
    """`call()`, which an interrupt ends by an exception, for work that has more to undo; then as above."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return call()
    except KeyboardInterrupt:
        complain(f"distqat {program}: interrupted")
        return INTERRUPTED


class undone:
    """Around work that leaves something behind: an interrupt calls `undo` before it ends the process."""

    def __init__(self, undo: Callable[[], object]) -> None:
        self._entry = os.getpid(), undo

    def __enter__(self) -> None:
        _undo.append(self._entry)

    def __exit__(self, *error: object) -> None:
        _undo.remove(self._entry)


def keep_clean() -> None:
    """Have everything but `complain` go to a log; until `log_to` names it, to a nameless file."""
    global _kept
    if keeps_clean():
        return
    try:
        sys.stderr.flush()
        encoding, errors = sys.stderr.encoding, sys.stderr.errors
        terminal = os.fdopen(os.dup(2), "w", buffering=1, encoding=encoding, errors=errors)
    except (OSError, AttributeError):  # standard error is closed
        return
    spool = _nameless_file()
    os.dup2(spool, 2)
    _kept = _Kept(terminal, spool)


def keeps_clean() -> bool:
    """Whether this process called `keep_clean`."""
    return _kept is not None and _kept.owner == os.getpid()


def log_to(path: Path) -> None:
    """What libraries write, and have written before, goes to the end of this file. OSError: it cannot."""
    if _kept is None or _kept.owner != os.getpid():
        return
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    if _kept.log is None:
        import atexit

        atexit.register(_copy_spool)
    sys.stderr.flush()
    os.dup2(file, 2)
    os.close(file)
    _kept.log = path
    _copy_spool()


def kept_log() -> Path | None:
    """The log; one in the temporary folder where none was named. None: standard error is as it was."""
    if _kept is None or _kept.owner != os.getpid():
        return None
    if _kept.log is None:
        import tempfile
        from pathlib import Path

        number, name = tempfile.mkstemp(prefix="distqat-", suffix=".log")
        os.close(number)
        log_to(Path(name))
    return _kept.log


def stream() -> TextIO:
    """Where lines for the person at the terminal are to be written."""
    if _through is not None and _through[0] == os.getpid():
        return _through[1]
    return _kept.terminal if _kept is not None and _kept.owner == os.getpid() else sys.stderr


def complain(line: str) -> None:
    """One line for the person at the terminal, on standard error."""
    print(line, file=stream(), flush=True)


def show_through(above: TextIO | None) -> None:
    """Lines go through `above` from here on, which prints them above a panel; None: directly."""
    global _through
    _through = None if above is None else (os.getpid(), above)


def leave(code: int) -> NoReturn:
    """End this process now: a thread that is still at work would keep the interpreter, or abort it."""
    import logging

    _copy_spool()
    logging.shutdown()
    for each in (sys.stdout, sys.stderr):
        try:
            each.flush()
        except (OSError, ValueError):  # a full disk, a closed stream: nobody left to tell
            continue
    os._exit(code)


def _nameless_file() -> int:
    if sys.platform == "linux":
        return os.memfd_create("distqat-log")
    import tempfile

    number, name = tempfile.mkstemp()
    os.unlink(name)  # noqa: PTH108  nothing but its descriptor is wanted
    return number


def _copy_spool() -> None:
    if _kept is None or _kept.owner != os.getpid() or _kept.log is None:
        return
    text = os.pread(_kept.spool, 1 << 24, _kept.copied)
    os.write(2, text)
    _kept.copied += len(text)
