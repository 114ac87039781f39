"""What a freshly forked child does to become a role."""

from __future__ import annotations

import faulthandler
import importlib
import logging
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from distqat.environment import take_any_text
from distqat.failures import describe
from distqat.process.launcher_notices import LastWords, tell_end
from distqat.process.parent_death import PARENT_PID, die_with_parent
from distqat.process.process_title import script_of, set_title
from distqat.process.role_command import READY_FD, RoleCommand
from distqat.terminal import leave_on_interrupt


def become(command: RoleCommand, ready_fd: int, parent: int) -> NoReturn:
    """Turn this forked process into the role, run it and exit with its code; never returns."""
    code = 1
    try:
        reset_signals()
        os.setsid()  # a group of its own, so that killpg takes the role's daemons too
        die_with_parent(parent)
        _redirect(command)
        take_any_text()
        _set_environment(command, ready_fd, parent)
        faulthandler.enable()
        fresh_randomness()
        _limit_threads(command.threads)
        set_title(command.name, command.argv)
        leave_on_interrupt(command.name)
        code = _run(command)
    except SystemExit as end:
        code = _exit_code(end.code)
    except BaseException as error:  # noqa: BLE001  the edge of the process: whatever comes is told, then it is over
        traceback.print_exc()
        tell_end(LastWords(describe(error), "fault"))
    finally:
        _flush()
        os._exit(code)


def reset_signals() -> None:
    """The handlers of a new process; the fork server's must not outlive the fork."""
    signal.set_wakeup_fd(-1)
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def fresh_randomness() -> None:
    """Siblings of one fork server must not draw the same numbers."""
    random.seed()
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        numpy.random.seed()
    if torch is not None:
        torch.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)


def _redirect(command: RoleCommand) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if command.log_path is None:
        return
    command.log_path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(command.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _set_environment(command: RoleCommand, ready_fd: int, parent: int) -> None:
    for key, value in command.env.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value
    os.environ[READY_FD] = str(ready_fd)
    os.environ[PARENT_PID] = str(parent)


def _limit_threads(threads: int | None) -> None:
    if threads is None:
        return
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def _run(command: RoleCommand) -> int:
    module, _, function = command.entry.partition(":")
    sys.argv = [script_of(command.name.split(maxsplit=1)[0]), *command.argv]
    main: Callable[[Sequence[str]], int | None] = getattr(importlib.import_module(module), function or "main")
    return main(list(command.argv)) or 0


def _exit_code(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)  # noqa: T201  what the interpreter does with SystemExit("text")
    return 1


def _flush() -> None:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # a full disk, a closed stream: nothing left to tell it to
            continue
