"""The owner's side of the fork server: start roles from a warm process and learn of their ends at once."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from distqat.errors import ConfigError, DistqatError, RoleError
from distqat.process import forkserver
from distqat.process.announced_wait import AnnouncedWait
from distqat.process.launcher_notices import LastWords
from distqat.process.role_command import MessageLines, RoleCommand, encode
from distqat.process.role_endings import RoleEnded

PRELOAD = ("torch", "torch._dynamo", "hivemind", "uvloop", "setproctitle", "psutil")
_LOST = -signal.SIGKILL  # the exit code of a role whose fork server ended: it got SIGKILL with it


class RoleProcess:
    """A started role. `returncode` is None while it runs, else its exit code, or minus the signal."""

    def __init__(self, command: RoleCommand, pid: int, signal_role: Callable[[int, int, bool], None]) -> None:
        self.command = command
        self.pid = pid
        self.last_words: LastWords | None = None
        self.wait_told: AnnouncedWait | None = None  # what it says that it waits for
        self._signal_role = signal_role
        self._notices: list[str] = []
        self._hear: Callable[[str], None] = self._notices.append
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = loop.create_future()
        self._ready: asyncio.Future[dict[str, Any]] = loop.create_future()

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        """Its exit code, or minus the signal that ended it."""
        return await asyncio.shield(self._ended)

    async def ready(self, timeout_s: float) -> dict[str, Any]:
        """What the role said when it began to serve.

        RoleError: the time is over. If it ended before: the error that it ended with (`RoleEnded.failure`).
        """
        either: set[asyncio.Future[Any]] = {self._ready, self._ended}
        await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if self._ready.done():
            return self._ready.result()
        name, log = self.command.name, self.command.log_path
        where = f"; see {log}" if log else ""
        if not self._ended.done():
            raise RoleError(f"{name} (PID {self.pid}) was not ready after {timeout_s:g} s{where}")
        code = self._ended.result()
        if self.last_words is None:
            raise RoleError(f"{name} ended with code {code} before it was ready{where}")
        raise RoleEnded(self.command, self.pid, code, "", self.last_words).failure()

    def listen(self, hear: Callable[[str], None]) -> None:
        """Have `hear` called with every notice of the role, those included that came already."""
        self._hear = hear
        for sentence in self._notices:
            hear(sentence)
        self._notices.clear()

    def terminate(self) -> None:
        """SIGTERM: finish the step, hand off, end."""
        self._signal_role(self.pid, signal.SIGTERM, False)

    def kill(self) -> None:
        """SIGKILL for the role and everything in its process group."""
        self._signal_role(self.pid, signal.SIGKILL, True)

    def _on_event(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "ready" and not self._ready.done():
            self._ready.set_result(event["body"])
        elif kind == "notice":
            self._hear(event["text"])
        elif kind == "wait":
            self.wait_told = (
                AnnouncedWait(event["text"], event["since"], told=True) if event["text"] else None
            )
        elif kind == "ended":
            log = event["log"]
            self.last_words = LastWords(event["text"], event["kind"], Path(log) if log else None)
        elif kind == "exit" and not self._ended.done():
            self._ended.set_result(event["status"])


class ForkServerClient:
    """A warm fork server and the roles that it started. Use it from one event loop."""

    def __init__(self, connection: socket.socket, pid: int, reap: Callable[[], object]) -> None:
        self.pid = pid
        self._connection = connection
        self._reap = reap
        self._ids = itertools.count()
        self._spawning: dict[int, tuple[RoleCommand, asyncio.Future[RoleProcess]]] = {}
        self._roles: dict[int, RoleProcess] = {}
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._attaching: asyncio.Task[asyncio.StreamWriter] | None = None
        self._warm: asyncio.Future[bool] | None = None
        self._lost = False
        self._broken = ""  # why the fork server could not import what it should

    @classmethod
    def start(cls, preload: Sequence[str] = PRELOAD) -> ForkServerClient:
        """Start the fork server; returns at once, it goes on importing meanwhile.

        A process with one thread and nothing running is forked as it is, warm already if it was forked
        from such a server itself; any other starts a new interpreter. Call it from the main thread.
        """
        ours, theirs = socket.socketpair()
        owner = os.getpid()
        if may_fork():
            return cls._fork(ours, theirs, owner, preload)
        environment = dict(os.environ)
        source = str(Path(__file__).parents[3])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source, environment.get("PYTHONPATH")]))
        environment[forkserver.TITLE_ROOM] = "x" * 2048
        process = subprocess.Popen(
            [sys.executable, "-m", "distqat.process", str(theirs.fileno()), str(owner), *preload],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        theirs.close()
        return cls(ours, process.pid, process.wait)

    @classmethod
    def _fork(
        cls, ours: socket.socket, theirs: socket.socket, owner: int, preload: Sequence[str]
    ) -> ForkServerClient:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            forkserver.forget_descriptors(keep=[theirs.fileno()])
            forkserver.run(theirs, owner, preload)
        theirs.close()
        return cls(ours, pid, lambda: os.waitpid(pid, 0))

    async def warm(self) -> None:
        """Wait until everything is imported. ConfigError: that fails. RoleError: the fork server ended."""
        await self._attach()
        assert self._warm is not None
        if not await asyncio.shield(self._warm):
            raise ConfigError(self._broken) if self._broken else RoleError("the fork server ended")

    async def spawn(self, command: RoleCommand, timeout_s: float = 120.0) -> RoleProcess:
        """Start a role; waits for the imports if need be.

        ConfigError: something of ours cannot be imported. RoleError: it cannot be forked.
        """
        writer = await self._attach()
        if self._lost:
            raise self._gone(command)
        number = next(self._ids)
        answer: asyncio.Future[RoleProcess] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(_seen)  # also when its caller was cancelled meanwhile
        self._spawning[number] = (command, answer)
        writer.write(encode({"op": "spawn", "id": number, "command": command.to_message()}))
        try:
            return await asyncio.wait_for(asyncio.shield(answer), timeout_s)
        except asyncio.TimeoutError as error:
            raise RoleError(f"{command.name} was not started within {timeout_s:g} s") from error

    async def close(self) -> None:
        """End the fork server and, within about two seconds, whatever it still runs.

        One that still imports is not waited for: SIGHUP ends it then; later it makes it look for its owner.
        """
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGHUP)
        writer = await self._attach()
        with suppress(OSError, RuntimeError):  # it may be gone already
            writer.write_eof()
        assert self._reader is not None
        await self._reader
        writer.close()
        await asyncio.get_running_loop().run_in_executor(None, self._reap)

    async def _attach(self) -> asyncio.StreamWriter:
        """Read from the socket in this event loop; first callers may come together."""
        if self._attaching is None:
            self._warm = asyncio.get_running_loop().create_future()
            self._attaching = asyncio.create_task(self._connect())
        return await asyncio.shield(self._attaching)

    async def _connect(self) -> asyncio.StreamWriter:
        self._connection.setblocking(False)
        reader, self._writer = await asyncio.open_unix_connection(sock=self._connection)
        self._reader = asyncio.create_task(self._read(reader))
        return self._writer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        lines = MessageLines()
        try:
            while data := await reader.read(1 << 16):
                for event in lines.feed(data):
                    self._on_event(event)
        except ConnectionError:
            pass
        finally:
            self._on_loss()

    def _on_event(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "warm":
            assert self._warm is not None
            self._warm.set_result(True)
        elif kind == "broken":
            self._broken = str(event["why"])
        elif kind == "spawned":
            command, answer = self._spawning.pop(event["id"])
            role = self._roles[event["pid"]] = RoleProcess(command, event["pid"], self._signal)
            if not answer.done():
                answer.set_result(role)
        elif kind == "failed":
            command, answer = self._spawning.pop(event["id"])
            if not answer.done():
                answer.set_exception(RoleError(f"{command.name}: {event['why']}"))
        else:
            role = self._roles[event["pid"]]
            if kind == "exit":
                del self._roles[event["pid"]]
            role._on_event(event)

    def _on_loss(self) -> None:
        self._lost = True
        if self._warm is not None and not self._warm.done():
            self._warm.set_result(False)
        for role in self._roles.values():
            role._on_event({"event": "exit", "status": _LOST})
        self._roles.clear()
        for command, answer in self._spawning.values():
            if not answer.done():
                answer.set_exception(self._gone(command))
        self._spawning.clear()

    def _gone(self, command: RoleCommand) -> DistqatError:
        if self._broken:
            return ConfigError(self._broken)
        return RoleError(f"cannot start {command.name}: the fork server has ended")

    def _signal(self, pid: int, signum: int, group: bool) -> None:
        if self._writer is not None and not self._lost:
            self._writer.write(encode({"op": "signal", "pid": pid, "signal": int(signum), "group": group}))


def _seen(answer: asyncio.Future[RoleProcess]) -> None:
    if not answer.cancelled():
        answer.exception()


def may_fork() -> bool:
    """One thread, no event loop running, no CUDA context: a fork of this process is sound."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir() or len(list(tasks.iterdir())) > 1:
        return False
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False
