"""Folders that appear whole or not at all, although their writers may be killed at any moment.

A temporary folder is locked (flock) as long as its writer lives; the kernel frees the lock when the writer
dies, so a leftover is told from work in progress without trusting process ids, which are reused.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distqat.errors import CheckpointError

_ATTEMPTS = 5
_POLL_S = 0.02


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = _open(folder)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path, *, wait_s: float) -> Iterator[None]:
    """Hold a folder alone. Raises CheckpointError when somebody else holds it for longer than `wait_s`."""
    descriptor = _open(folder)
    try:
        deadline = time.monotonic() + wait_s
        while _locked_by_another(descriptor):
            if time.monotonic() >= deadline:
                raise CheckpointError(f"{folder} has been held by another process for {wait_s:.0f} s")
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def temporary_folder(parent: Path, label: str) -> Iterator[Path]:
    """A new locked folder `.{label}.{pid}-{random}.tmp` in `parent`, which is made; gone at the end.

    Who renames it keeps what is in it.
    """
    folder, descriptor = _create(parent, label)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def is_temporary(path: Path) -> bool:
    """Whether a name is one of `temporary_folder` or `set_aside`."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def set_aside(path: Path) -> Path:
    """Take a folder or file out of sight in one step; `remove_leftovers` deletes it."""
    return path.rename(path.with_name(_name(path.name)))


def remove_leftovers(parent: Path) -> list[Path]:
    """Delete temporary folders in `parent` whose writers are dead; those that were."""
    removed = []
    for path in sorted(p for p in parent.iterdir() if is_temporary(p)):
        try:
            descriptor = _open(path)
        except NotADirectoryError:
            path.unlink(missing_ok=True)
            removed.append(path)
            continue
        except FileNotFoundError:  # its writer finished, or another prune was faster
            continue
        try:
            if not _locked_by_another(descriptor, unknown=True):
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path)
        finally:
            os.close(descriptor)
    return removed


def _create(parent: Path, label: str) -> tuple[Path, int]:
    for _ in range(_ATTEMPTS):
        folder = parent / _name(label)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            descriptor = _open(folder)
        except FileNotFoundError:  # a prune between two of these lines
            continue
        if not _locked_by_another(descriptor):  # else a prune saw it before it was locked, and deletes it
            with suppress(FileNotFoundError):
                if folder.stat().st_ino == os.fstat(descriptor).st_ino:
                    return folder, descriptor
        os.close(descriptor)
    raise CheckpointError(f"no temporary folder can be kept in {parent}: something deletes them at once")


def _name(label: str) -> str:
    return f".{label}.{os.getpid()}-{secrets.token_hex(4)}.tmp"


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _locked_by_another(descriptor: int, *, unknown: bool = False) -> bool:
    """False: the folder is ours from now on. `unknown` is the answer of a filesystem without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return unknown
    return False
