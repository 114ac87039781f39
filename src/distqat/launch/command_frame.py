"""The frame of a command that does one thing and ends: an error is one line, and no library speaks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from distqat.process import guarded
from distqat.process.role_logs import warn_at_terminal


def run_command(name: str, call: Callable[[], int]) -> int:
    """`call()`; an error as the last line on standard error, and exit code 2 (ConfigError) or 1.

    Our warnings go to the terminal, all else of a command has no log to go to.
    """
    warn_at_terminal()
    return guarded(name, lambda: _until_nobody_reads(call))


def _until_nobody_reads(call: Callable[[], int]) -> int:
    try:
        code = call()
        sys.stdout.flush()
    except BrokenPipeError:  # `distqat checkpoint list DIR | head -1` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code
