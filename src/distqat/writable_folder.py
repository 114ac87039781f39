"""Whether a folder can be written, found out by writing: modes tell little of read-only or full disks."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

PROBE_BYTES = 1 << 16


def why_unwritable(folder: Path) -> str:
    """What stands in the way of files in `folder`, which is made; "" when they can be written."""
    probe = folder / f".probe.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with probe.open("xb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return ""


def free_bytes(folder: Path) -> int | None:
    """Room on the disk of `folder`, which need not be there yet; None where that cannot be told."""
    there = next((place for place in (folder, *folder.absolute().parents) if place.is_dir()), None)
    try:
        return None if there is None else shutil.disk_usage(there).free
    except OSError:
        return None
