"""Starts the processes of a benchmark and ends them, whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import psutil

from benchmarks.report import ROOT
from benchmarks.scene import Case
from distqat.process.parent_death import PARENT_PID
from distqat.process.runtime_folder import HOST_ID
from distqat.protocol.call_schema import fields_of, parse
from distqat.protocol.hop import Hop

START_S = 120.0
ANSWER_S = 900.0


@contextlib.contextmanager
def private_runtime() -> Iterator[None]:
    """Sockets of this process and its workers go into a folder of their own, away from a swarm that runs."""
    before = os.environ.get("XDG_RUNTIME_DIR")
    with tempfile.TemporaryDirectory(prefix="dqb-", ignore_cleanup_errors=True) as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["XDG_RUNTIME_DIR"]
            else:
                os.environ["XDG_RUNTIME_DIR"] = before


class Worker:
    """One process with one compute thread. It dies with this one, also if this one is killed."""

    def __init__(self, kind: str, name: str = "", *, host: str | None = None) -> None:
        self.name = name or kind
        environment = {
            **os.environ,
            PARENT_PID: str(os.getpid()),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        }
        if host is not None:
            environment[HOST_ID] = host
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", kind, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=ROOT,
            env=environment,
        )

    def answer(self, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """The next thing that it says. RuntimeError: it ended, or says nothing for `timeout_s`."""
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline() if readable else b""
        if not line:
            raise RuntimeError(f"{self.name} said nothing; exit code {self._process.poll()}")
        said: dict[str, Any] = json.loads(line)
        return said

    def ask(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        return self.answer()

    def cpu_seconds(self) -> tuple[float, float]:
        """Of the process itself, and of its libp2p daemon."""
        own = psutil.Process(self._process.pid)
        return _cpu(own), sum(_cpu(child) for child in own.children(recursive=True))

    def end(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Stages:
    """A process per stage. They start at the same time; `ready` waits for them."""

    def __init__(self, names: Sequence[str], *, apart: bool = False) -> None:
        self.workers: list[Worker] = []
        self.hops: list[Hop] = []
        try:
            for number, name in enumerate(names):
                self.workers.append(Worker("stage", name, host=f"benchmark-{number}" if apart else None))
        except BaseException:
            self.end()
            raise

    def ready(self) -> None:
        """Wait until all serve."""
        self.hops = [parse(Hop, worker.answer(START_S)) for worker in self.workers]

    def take(self, case: Case) -> None:
        """Build the stages of a case."""
        for worker in self.workers:
            worker.ask(case=case.dumps())

    def send(self, activations: str) -> None:
        """What leaves a stage goes in this form from now on; the last sends nothing on."""
        for worker in self.workers[:-1]:
            worker.ask(activations=activations)

    def end(self) -> None:
        for worker in self.workers:
            worker.end()


class Pipeline:
    """A trainer and two stages, over Unix sockets or over libp2p: its processes then claim other hosts."""

    def __init__(self, names: Sequence[str], over: str) -> None:
        apart = over == "libp2p"
        self._stages = Stages(names, apart=apart)
        self._trainer = Worker("trainer", host="benchmark-trainer" if apart else None)

    def ready(self) -> None:
        """Wait until all processes serve."""
        self._stages.ready()
        self._trainer.answer(START_S)

    def take(self, case: Case) -> None:
        """Build the stages of a case and calibrate them."""
        self._stages.take(case)
        self._trainer.ask(case=case.dumps(), hops=[fields_of(hop) for hop in self._stages.hops])

    def send(self, activations: str) -> None:
        """As `Stages.send`."""
        self._stages.send(activations)

    def block(self, count: int) -> dict[str, Any]:
        """`count` steps: their times, bytes, and CPU seconds by process."""
        workers = [*self._stages.workers, self._trainer]
        before = [worker.cpu_seconds() for worker in workers]
        result = self._trainer.ask(count=count)
        after = [worker.cpu_seconds() for worker in workers]
        result["process_cpu_s"] = {
            worker.name: {"python": new[0] - old[0], "p2pd": new[1] - old[1]}
            for worker, old, new in zip(workers, before, after, strict=True)
        }
        return result

    def end(self) -> None:
        self._trainer.end()
        self._stages.end()


@contextlib.contextmanager
def processes(stages: list[str], transports: Sequence[str]) -> Iterator[tuple[Worker, dict[str, Pipeline]]]:
    """A plain loop and one pipeline per transport, ready, and ended at the end."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(private_runtime())
        loop = Worker("plain")
        stack.callback(loop.end)
        pipelines: dict[str, Pipeline] = {}
        for over in transports:
            pipelines[over] = Pipeline(stages, over)
            stack.callback(pipelines[over].end)
        loop.answer(START_S)
        for running in pipelines.values():
            running.ready()
        yield loop, pipelines


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
