"""The warm process that roles are forked from: `python -m distqat.process`.

It imports what roles need once, never starts a thread or an event loop, and forks on request. Its life:
until its owner closes the socket or ends in any way; then it ends every child, waits, and exits.
"""

from __future__ import annotations

import gc
import importlib
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from distqat.errors import ConfigError, RoleError
from distqat.failures import describe
from distqat.process.forked_child import become
from distqat.process.parent_death import adopt_orphans, die_with_parent
from distqat.process.process_title import set_title
from distqat.process.role_command import MessageLines, RoleCommand, encode

TITLE_ROOM = "DISTQAT_TITLE_ROOM"  # a title fits only where arguments and environment were at the start
GRACE_S = 0.5  # from the owner's end to SIGKILL for what it left; two fork servers in a row stay within 2 s
_IGNORED = (signal.SIGTERM, signal.SIGINT)  # `pkill -f distqat` reaches us too; we end after our children
_WATCHED = (signal.SIGCHLD, signal.SIGHUP)


@dataclass
class _Child:
    pipe: int | None  # reading end of the pipe over which it tells us things
    lines: MessageLines = field(default_factory=MessageLines)


@dataclass
class ForkServer:
    """Forks roles for the owner at the other end of `owner`."""

    owner: socket.socket
    owner_pid: int
    _children: dict[int, _Child] = field(default_factory=dict)
    _lines: MessageLines = field(default_factory=MessageLines)
    _deadline: float | None = None

    def __post_init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)

    def serve(self, preload: Sequence[str]) -> None:
        """Import, then fork until the owner is gone and no child is left."""
        for signum in _IGNORED:
            signal.signal(signum, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # while importing there is nothing to clean up
        adopt_orphans()
        die_with_parent(self.owner_pid, signal.SIGHUP)
        try:
            warm(preload)
        except ConfigError as error:
            self._tell({"event": "broken", "why": str(error)})
            return
        self._watch_signals()
        self._tell({"event": "warm"})
        self._selector.register(self.owner, selectors.EVENT_READ, self._on_owner)
        self._selector.register(self._wake, selectors.EVENT_READ, self._on_signal)
        while self._deadline is None or self._children:
            for key, _ in self._selector.select(self._remaining()):
                key.data()
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self._signal_all(signal.SIGKILL)
                self._deadline = time.monotonic() + GRACE_S

    def _watch_signals(self) -> None:
        for signum in _WATCHED:
            signal.signal(signum, _noticed)
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)

    def _remaining(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _on_owner(self) -> None:
        try:
            data = self.owner.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            self._selector.unregister(self.owner)
            self._end()
            return
        for message in self._lines.feed(data):
            if message["op"] == "spawn":
                self._spawn(message)
            else:
                self._signal(message["pid"], message["signal"], message["group"])

    def _on_signal(self) -> None:
        with suppress(BlockingIOError):
            self._wake.recv(4096)
        if os.getppid() != self.owner_pid:
            self._end()
        self._reap()

    def _end(self) -> None:
        if self._deadline is None:
            self._signal_all(signal.SIGTERM)
            self._deadline = time.monotonic() + GRACE_S

    def _spawn(self, message: Mapping[str, Any]) -> None:
        command = RoleCommand.from_message(message["command"])
        ready, said = os.pipe()
        os.set_blocking(ready, False)
        parent = os.getpid()
        # Blocked, a signal that comes before the child has its own handlers waits; ignored, it would be lost.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
        try:
            pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(ready)
            os.close(said)
            self._tell({"event": "failed", "id": message["id"], "why": f"cannot fork: {error.strerror}"})
            return
        if pid == 0:
            os.close(ready)
            self._forget()
            become(command, said, parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(said)
        child = self._children[pid] = _Child(ready)
        self._selector.register(ready, selectors.EVENT_READ, lambda: self._on_pipe(pid, child))
        self._tell({"event": "spawned", "id": message["id"], "pid": pid})

    def _forget(self) -> None:
        """In a forked child: close what belongs to the fork server alone."""
        self._selector.close()
        for end in (self.owner, self._wake, self._woken):
            end.close()
        for child in self._children.values():
            if child.pipe is not None:
                os.close(child.pipe)

    def _on_pipe(self, pid: int, child: _Child, *, ended: bool = False) -> None:
        """Hand on what a role told. `ended`: read all that is left, whoever else still holds the pipe."""
        while child.pipe is not None:
            try:
                data = os.read(child.pipe, 1 << 16)
                for message in child.lines.feed(data):
                    self._tell({**message, "pid": pid})
            except (BlockingIOError, RoleError):  # nothing left; or nonsense, which must not end its siblings
                if not ended:
                    return
                data = b""
            if not data:
                self._selector.unregister(child.pipe)
                os.close(child.pipe)
                child.pipe = None
            elif not ended:
                return

    def _signal(self, pid: int, signum: int, group: bool) -> None:
        """Only for children not yet reaped: their PID cannot belong to anybody else."""
        if pid in self._children:
            _kill(pid, signum, group)

    def _signal_all(self, signum: int) -> None:
        for pid in self._children:
            _kill(pid, signum, group=signum == signal.SIGKILL)

    def _reap(self) -> None:
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid = ended.si_pid
            child = self._children.pop(pid, None)
            if child is not None:
                _kill(pid, signal.SIGKILL, group=True)  # its daemons; the zombie still holds the number
            _, status = os.waitpid(pid, 0)
            if child is not None:
                self._on_pipe(pid, child, ended=True)
                self._tell({"event": "exit", "pid": pid, "status": os.waitstatus_to_exitcode(status)})

    def _tell(self, message: Mapping[str, Any]) -> None:
        with suppress(ConnectionError):  # the owner is gone, which the loop notices by itself
            self.owner.sendall(encode(message))


def warm(preload: Sequence[str]) -> None:
    """Import what roles need, without starting threads; a package that is not there is left to the role.

    Raises ConfigError with file and line where a module of ours, or one that it imports, cannot be imported:
    a model or a task that somebody wrote into the package.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's BLAS starts its threads as it is imported
    for name in preload:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            if isinstance(error, ImportError) and not name.startswith("distqat"):
                continue
            raise ConfigError(f"{name} cannot be imported: {describe(error)}") from error
    gc.collect()
    gc.freeze()  # pages of what is imported stay shared between the roles


def forget_descriptors(keep: Sequence[int]) -> None:
    """Point every other descriptor above 2 to the null device: the owner's locks and pipes are not ours.

    Not closed, so that objects which still name them can never close a number that was given out again.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  the listing's own descriptor is in it
        number = int(name)
        if number > 2 and number not in keep and number != null:
            with suppress(OSError):
                os.fstat(number)
                os.dup2(null, number, inheritable=False)
    os.close(null)


def run(owner: socket.socket, owner_pid: int, preload: Sequence[str]) -> None:
    """The whole life of a fork server in this process; ends it."""
    code = 1
    try:
        set_title("forkserver", [])
        ForkServer(owner, owner_pid).serve(preload)
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def main(argv: Sequence[str] | None = None) -> None:
    """Arguments: the owner's socket, its PID, the modules to import."""
    words = sys.argv[1:] if argv is None else list(argv)
    os.environ.pop(TITLE_ROOM, None)
    owner = socket.socket(fileno=int(words[0]))
    owner.set_inheritable(False)
    run(owner, int(words[1]), words[2:])


def _kill(pid: int, signum: int, group: bool) -> None:
    send: Callable[[int, int], None] = os.killpg if group else os.kill
    try:
        send(pid, signum)
    except ProcessLookupError:
        if group:  # forked, but its group does not exist yet
            with suppress(ProcessLookupError):
                os.kill(pid, signum)
    except PermissionError:  # a zombie's group, on some systems
        return


def _noticed(signum: int, frame: object) -> None:
    """The wake-up descriptor tells the loop; a handler must exist for it to be written."""
