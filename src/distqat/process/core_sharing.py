"""The CPU cores of a host, shared by all servers on it, however they were started.

Each server holds a lock file in the runtime folder that names the cores which it may run on. The lock goes
with the process, in whatever way that ends, so whoever looks sees the servers that are there now.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import math
import os
import secrets
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from distqat.process.runtime_folder import runtime_dir

LOOK_S = 1.0
_CGROUP = Path("/sys/fs/cgroup")


def own_cores() -> frozenset[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def core_quota(root: Path = _CGROUP) -> float:
    """How many cores' time the container of this process gets; infinite where nothing bounds it."""
    try:
        if (bound := root / "cpu.max").exists():  # cgroup v2: "200000 100000"
            quota, period = bound.read_text(encoding="ascii").split()
        else:
            quota, period = (
                (root / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="ascii")
                for name in ("quota", "period")
            )
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError):  # no such bound: "max 100000"
        return math.inf


def share_of_cores(own: Collection[int], others: Sequence[Collection[int]], quota: float = math.inf) -> int:
    """Threads for one of several servers: a core is divided among those that may run on it; at least one."""
    share = sum(1.0 / (1 + sum(core in other for other in others)) for core in own)
    return max(1, int(min(share, quota / (1 + len(others))) + 1e-9))


class CoreShare:
    """This process among the servers of its host, until `leave` or its end."""

    def __init__(self, folder: Path | None = None, cores: Collection[int] | None = None) -> None:
        self._folder = folder or runtime_dir() / "servers"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._cores = frozenset(own_cores() if cores is None else cores)
        self._path = self._folder / f"{os.getpid()}-{secrets.token_hex(4)}.cores"
        fresh = self._path.with_suffix(".new")
        self._lock = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.write(self._lock, json.dumps(sorted(self._cores)).encode())
        fresh.rename(self._path)  # whoever sees it sees it locked and whole

    def threads(self, at_most: float = math.inf) -> int:
        """How many threads this server should compute with now."""
        return int(min(at_most, share_of_cores(self._cores, self._others(), core_quota())))

    async def follow(self, now: Callable[[int], None], at_most: float = math.inf) -> None:
        """Tell `now` how many threads there are, at once and whenever servers come or go; until cancelled."""
        told = 0
        while True:
            threads = self.threads(at_most)
            if threads != told:
                told = threads
                now(threads)
            await asyncio.sleep(LOOK_S)  # files have no signal that every file system gives

    def leave(self) -> None:
        """Give the cores back. May be repeated."""
        if self._lock >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1

    def _others(self) -> list[frozenset[int]]:
        found = []
        for path in self._folder.glob("*.cores"):
            if path != self._path and (cores := _cores_of_living(path)) is not None:
                found.append(cores)
        return found


def _cores_of_living(path: Path) -> frozenset[int] | None:
    """The cores of another server; None, and the file goes, when it has ended."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return None
    except BlockingIOError:
        text = os.read(file, 1 << 16)
    finally:
        os.close(file)
    try:
        return frozenset(int(core) for core in json.loads(text))
    except (ValueError, TypeError):
        return None
