"""The log folder of a local run: one launcher at a time, and a fresh start for every run."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from distqat.errors import ConfigError, RoleError
from distqat.metrics.run_summary import SUMMARY
from distqat.process import LogClaim, claim_log
from distqat.writable_folder import why_unwritable

if TYPE_CHECKING:
    from distqat.config import Config

PREVIOUS = "previous"
_KEEP = 3
_OF_A_RUN = (
    "*.log",
    "*.jsonl",
    SUMMARY,
    "initial_peers.txt",
    "classes.json",
    "metrics",
)  # not monitor.key: addresses stay valid


def claim_folder(folder: Path, *, resume: bool = False) -> LogClaim:
    """Claim the folder by its launcher log. RoleError: another launcher runs here; it cannot be written.

    With `resume` what is there is continued; only the summary of an earlier end goes.
    """
    try:
        for stem in ("run_local", "client"):  # the latter is what start_trainer_client.py holds
            held = claim_log(folder, stem)
            if held.number:
                if held.path.stat().st_size == 0:
                    held.path.unlink()
                held.release()
                raise RoleError(
                    f"another launcher writes {folder / stem}.log; wait for its end, or name this run with "
                    "--experiment-prefix (and give --monitor-port 0 --client-port 0)"
                )
            held.release()
        if resume:
            (folder / SUMMARY).unlink(missing_ok=True)
        else:
            set_aside(folder)
        return claim_log(folder, "run_local")
    except OSError as error:
        raise no_logs(folder, error) from error


def no_logs(folder: Path, error: OSError) -> RoleError:
    """What to say when logs cannot be written to a folder."""
    why = "a file is there" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
    return RoleError(f"cannot write logs in {folder}: {why}; name another folder with --log-dir")


def check_checkpoint_folder(config: Config) -> None:
    """ConfigError unless checkpoints, and the model at the end, can be written where they are to go."""
    why = why_unwritable(config.checkpoint_dir)
    if why:
        raise ConfigError(
            f"checkpoints and the trained model cannot be written to {config.checkpoint_dir.absolute()} "
            f"({why}); make room or change its permissions, or give another --param-mirror-checkpoint-dir"
        )


def set_aside(folder: Path) -> Path | None:
    """Move what an earlier run left into `previous/TIME`, the newest three kept; where it went, if anything.

    A run starts with an empty commit log, or it would be a continuation of the last one. Files that a live
    process holds (servers of another launcher) stay.
    """
    old = [path for pattern in _OF_A_RUN for path in sorted(folder.glob(pattern)) if not _held(path)]
    empty = [path for path in old if path.is_file() and path.stat().st_size == 0]
    for path in empty:
        path.unlink()
    old = [path for path in old if path not in empty]
    if not old:
        return None
    ended = max(path.stat().st_mtime_ns for path in old)
    second = time.strftime("%Y%m%d-%H%M%S", time.localtime(ended // 10**9))
    place = folder / PREVIOUS / f"{second}.{ended % 10**9 // 10**3:06}"
    place.mkdir(parents=True, exist_ok=True)
    for path in old:
        path.replace(place / path.name)
    for outdated in sorted(place.parent.iterdir())[:-_KEEP]:
        shutil.rmtree(outdated, ignore_errors=True)
    return place


def _held(path: Path) -> bool:
    if path.is_dir():
        return False
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        return True
    finally:
        os.close(file)
