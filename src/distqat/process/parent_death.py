"""Processes that end with the one that started them, whatever way that one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

PARENT_PID = "DISTQAT_PARENT_PID"  # set for a process that shall end with the one of this PID

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.5


def die_with_parent(parent: int | None = None, signum: int = signal.SIGKILL) -> None:
    """Ask to get `signum` when the parent (by default the present one) ends; exits at once if it already has.

    Linux: PR_SET_PDEATHSIG, which fires when the *thread* that started us ends, so roles are started
    from main threads. Elsewhere a daemon thread watches the parent's PID.
    """
    parent = os.getppid() if parent is None else parent
    if sys.platform == "linux":
        _prctl()(_PR_SET_PDEATHSIG, int(signum))
    else:
        threading.Thread(target=_watch, args=(parent, signum), name="parent-watch", daemon=True).start()
    if os.getppid() != parent:  # it ended between our fork and the call above
        os._exit(1)


def follow_parent_of_environment() -> None:
    """`die_with_parent` where DISTQAT_PARENT_PID says so. The variable is taken out."""
    text = os.environ.pop(PARENT_PID, "")
    if text.isdigit():
        die_with_parent(int(text))


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants, so that they are reaped even where PID 1 does not."""
    if sys.platform == "linux":
        _prctl()(_PR_SET_CHILD_SUBREAPER, 1)


def before_exec() -> Callable[[], None]:
    """A `preexec_fn` for daemons of a role (p2pd): SIGKILL for them when the role ends."""
    if sys.platform != "linux":
        return _nothing
    prctl, parent = _prctl(), os.getpid()  # looked up here: between fork and exec nothing is loaded

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(1)

    return bind


def _prctl() -> Callable[[int, int], int]:
    function = ctypes.CDLL(None, use_errno=True).prctl
    function.argtypes = [ctypes.c_int, ctypes.c_ulong]

    def call(option: int, value: int) -> int:
        if function(option, value) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")
        return 0

    return call


def _watch(parent: int, signum: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os.kill(os.getpid(), signum)


def _nothing() -> None:
    return None
