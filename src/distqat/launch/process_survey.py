"""Which processes a swarm has, what they cost, and what is left of them when all should be over."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from distqat.process.runtime_folder import short_folder
from distqat.terminal import undone

RUNTIME = "XDG_RUNTIME_DIR"
LEFT_S = 2.0  # I5: two seconds after the end nothing is left


@contextmanager
def private_runtime() -> Iterator[str]:
    """A folder for sockets and locks of this process and its children alone; it marks them, and goes.

    To be entered before anything is started: fork servers hand their environment on.
    """
    before = os.environ.get(RUNTIME)
    with tempfile.TemporaryDirectory(
        prefix="distqat-", dir=short_folder(), ignore_cleanup_errors=True
    ) as folder:
        os.environ[RUNTIME] = folder
        try:
            with undone(lambda: shutil.rmtree(folder, ignore_errors=True)):
                yield folder
        finally:
            os.environ.pop(RUNTIME)
            if before is not None:
                os.environ[RUNTIME] = before


class ProcessSurvey:
    """All processes that were ever seen below some ancestor."""

    def __init__(self) -> None:
        self.seen: dict[int, psutil.Process] = {}

    def look(self, ancestor: int) -> list[psutil.Process]:
        """Those below `ancestor` that live now; they are remembered."""
        found = family(ancestor)[1:]
        self.seen.update({process.pid: process for process in found})
        return found

    def alive(self) -> list[psutil.Process]:
        """Of those ever seen, the ones that still run."""
        return [process for process in self.seen.values() if lives(process)]


def family(pid: int) -> list[psutil.Process]:
    """A live process and everything below it; nothing when it has ended."""
    try:
        parent = psutil.Process(pid)
        return [each for each in (parent, *parent.children(recursive=True)) if lives(each)]
    except psutil.Error:
        return []


def lives(process: psutil.Process) -> bool:
    """Whether it runs; a zombie that waits for its parent does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def marked(runtime: str) -> list[psutil.Process]:
    """Live processes, this one aside, whose environment names our runtime folder: orphans too."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get(RUNTIME) == runtime
        except psutil.Error:
            continue
        if ours and process.pid != os.getpid() and lives(process):
            found.append(process)
    return found


def told(process: psutil.Process) -> str:
    """PID and title of a process, for a complaint."""
    try:
        return f"PID {process.pid} ({' '.join(process.cmdline())[:60]})"
    except psutil.Error:
        return f"PID {process.pid}"


async def left_behind(
    processes: ProcessSurvey, runtime: str, shared: set[Path], wait_s: float = LEFT_S
) -> list[str]:
    """I5, once every role was asked to end: what of a swarm is there after two seconds, in words.

    shared: what was in /dev/shm before. Of segments that came since, those that bear a PID of ours count.
    """
    deadline = time.monotonic() + wait_s
    while True:
        left = {process.pid: process for process in (*processes.alive(), *marked(runtime))}
        if not left or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.05)
    words = [told(process) for process in left.values()]
    pids = {str(pid) for pid in processes.seen}
    for path in shared_memory() - shared:
        if pids & set(path.name.replace("-", "_").split("_")):
            words.append(f"shared memory {path}")
    return words


def shared_memory() -> set[Path]:
    """Segments in /dev/shm; nothing where there is no such folder."""
    folder = Path("/dev/shm")
    return set(folder.iterdir()) if folder.is_dir() else set()
