"""Where this user's Unix sockets and locks live, and the name of this host."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from distqat.errors import RoleError

HOST_ID = "DISTQAT_HOST_ID"  # overrides `host_id`, for network namespaces that share one machine


def runtime_dir() -> Path:
    """$XDG_RUNTIME_DIR/distqat, else distqat-UID in the temporary folder; made with mode 0700.

    RoleError: it is a link, or belongs to somebody else, or others may enter it.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(base) / "distqat" if base else Path(tempfile.gettempdir()) / f"distqat-{os.geteuid()}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        seen = path.lstat()
    except OSError as error:
        raise RoleError(f"cannot make the runtime folder {path}: {error.strerror}") from error
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid():
        raise RoleError(f"{path} is not a folder of this user; remove it, or set XDG_RUNTIME_DIR")
    if stat.S_IMODE(seen.st_mode) & 0o077:
        raise RoleError(f"others may enter {path}; run `chmod 700 {path}`, or set XDG_RUNTIME_DIR")
    return path


def host_id() -> str:
    """16 hex digits, equal for processes of one user that can reach each other's Unix sockets.

    Machine, boot, user, and the runtime folder itself: containers may share all but the last.
    """
    given = os.environ.get(HOST_ID)
    if given:
        return given
    place = runtime_dir().stat()
    parts = [
        _text(Path("/etc/machine-id")),
        _text(Path("/proc/sys/kernel/random/boot_id")),
        str(os.geteuid()),
        f"{place.st_dev}:{place.st_ino}",
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return os.uname().nodename
