"""The frame of a role: event loop, signals, exit code, readiness."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from distqat.errors import ConfigError, DistqatError, RemoteFault, RoleError, RunFailed, SwarmError
from distqat.failures import describe, is_shortage
from distqat.process.launcher_notices import End, LastWords, adopt_pipe, tell_end
from distqat.process.parent_death import PARENT_PID, before_exec, follow_parent_of_environment
from distqat.terminal import INTERRUPTED, complain, kept_log, leave_on_interrupt

T = TypeVar("T")
_ONE_GESTURE_S = 0.5

logger = logging.getLogger(__name__)


class StopSignals:
    """Tells the first request to stop from the second.

    A role with a launcher gets one gesture twice: `pkill -f distqat` reaches it, and the launcher passes
    its own signal on. `gesture_s` is how long that counts as one.
    """

    def __init__(self, gesture_s: float) -> None:
        self._gesture_s = gesture_s
        self._first: float | None = None

    def is_second(self, now: float) -> bool:
        """Register a signal; True if it means: out at once."""
        if self._first is None:
            self._first = now
            return False
        return now - self._first >= self._gesture_s


def run_role(
    name: str, factory: Callable[[asyncio.Event], Coroutine[Any, Any, int | None]], *, grace_s: float = 10.0
) -> int:
    """Run `factory(stop)` in an event loop of the main thread; its exit code.

    SIGTERM or SIGINT sets `stop`; the role then has `grace_s` to end by itself. A second one ends the
    process at once with 130. ConfigError: one line and 2. Any other error: one line and 1, and the traceback
    of one that nobody foresaw in the log.
    """
    adopt_pipe()
    gesture = _ONE_GESTURE_S if PARENT_PID in os.environ else 0.0
    follow_parent_of_environment()
    loop = new_role_loop()
    asyncio.set_event_loop(loop)

    def run() -> int:
        return loop.run_until_complete(_supervised(factory, StopSignals(gesture), name, grace_s)) or 0

    try:
        return guarded(name, run)
    finally:
        _close(loop)
        leave_on_interrupt(name)  # the loop has taken its own handler with it


def run_alone(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in an event loop like a role's: its daemons end with this process, however that ends."""
    loop = new_role_loop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(work)
    finally:
        _close(loop)


def guarded(name: str, call: Callable[[], int]) -> int:
    """`call()`, with an error as the last line on standard error and exit code 2 (ConfigError) or 1.

    Where more is to be read of it, another role's log or our own, is told in the line before.
    """
    try:
        return call()
    except ConfigError as error:
        return _complain(name, error, "final", 2)
    except RunFailed as error:
        return _complain(name, error, "final", 1)
    except RemoteFault as error:
        return _complain(name, error, "fault", 1)
    except (SwarmError, RoleError) as error:
        return _complain(name, error, "circumstance", 1)
    except DistqatError as error:
        return _complain(name, error, "fault", 1)
    except Exception as error:  # the edge of the process: the log gets the traceback, the user a sentence
        logger.exception("%s ends with an error that nobody foresaw", name)
        return _complain(name, error, "circumstance" if is_shortage(error) else "fault", 1, kept_log())


def new_role_loop() -> asyncio.AbstractEventLoop:
    """An event loop (uvloop where there is one) whose subprocesses, such as p2pd, end with this process."""
    base: type[asyncio.AbstractEventLoop]
    try:
        import uvloop

        base = uvloop.Loop
    except ImportError:
        base = asyncio.SelectorEventLoop
    loop: asyncio.AbstractEventLoop = type("RoleLoop", (_BoundChildren, base), {})()
    return loop


class _BoundChildren:
    """Mixed into an event loop class."""

    def subprocess_exec(self, protocol_factory: Any, *args: Any, **options: Any) -> Awaitable[Any]:
        options.setdefault("preexec_fn", before_exec())
        started: Awaitable[Any] = super().subprocess_exec(protocol_factory, *args, **options)  # type: ignore[misc]
        return started


async def _supervised(
    factory: Callable[[asyncio.Event], Coroutine[Any, Any, int | None]],
    signals: StopSignals,
    name: str,
    grace_s: float,
) -> int | None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def on_signal(signum: signal.Signals) -> None:
        if signals.is_second(time.monotonic()):
            os._exit(INTERRUPTED)
        if not stop.is_set():
            logger.info("%s: %s, ending; once more to leave at once", name, signum.name)
            stop.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal, signum)
    task = asyncio.ensure_future(factory(stop))
    asked = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({task}, timeout=grace_s)
        if not task.done():
            logger.error("%s did not end within %g s of being asked; given up", name, grace_s)
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)
            return 1
        return task.result()
    finally:
        asked.cancel()


def _complain(name: str, error: Exception, kind: End, code: int, log: Path | None = None) -> int:
    sentence = describe(error)
    log = error.log if isinstance(error, DistqatError) else log
    if log is not None:
        complain(f"see {log}")
    complain(f"distqat {name}: {sentence}")
    tell_end(LastWords(sentence, kind, log))
    return code


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """What asyncio.run does at its end, with a bound: cancel what is left, close generators and the loop."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=2.0))
    loop.run_until_complete(loop.shutdown_asyncgens())
    asyncio.set_event_loop(None)
    loop.close()
