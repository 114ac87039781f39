"""Where this user's Unix sockets and locks live, and the name of this host."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from pathlib import Path

from distqat.errors import RoleError

HOST_ID = "DISTQAT_HOST_ID"  # overrides `host_id`, for network namespaces that share one machine
ROOM = 107 if sys.platform.startswith("linux") else 103  # bytes of a Unix socket's path (sun_path)
LONGEST_NAME = len("/p2pd-p2pclient-0123456789a.sock")
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def runtime_dir() -> Path:
    """$XDG_RUNTIME_DIR/distqat, else distqat-UID in the temporary folder; made with mode 0700.

    Where the paths of sockets in it would be too long, a folder of its own in /tmp (or SHORT_FOLDERS).
    RoleError: it is a link, or belongs to somebody else, or others may enter it.
    """
    wanted = _wanted()
    path = wanted if has_room(wanted) else _short(wanted)
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


def has_room(folder: Path) -> bool:
    """Whether the paths of our sockets in `folder` are short enough for the system."""
    return len(os.fsencode(folder)) + LONGEST_NAME <= ROOM


def moved() -> str | None:
    """A sentence when `runtime_dir` is not where the environment says; None: it is."""
    wanted = _wanted()
    if has_room(wanted):
        return None
    return f"Unix sockets lie in {_short(wanted)}: their paths in {wanted} would be longer than {ROOM} bytes"


def short_folder() -> Path:
    """The folder for temporary files, or another where a folder in that one has no room for sockets.

    RoleError: there is none that can be written.
    """
    usual = Path(tempfile.gettempdir())
    return usual if has_room(usual / "distqat-01234567" / "distqat") else _writable()


def _wanted() -> Path:
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "distqat" if base else Path(tempfile.gettempdir()) / f"distqat-{os.geteuid()}"


def _short(wanted: Path) -> Path:
    """Whatever the process, the same for the same `wanted`."""
    name = hashlib.sha256(os.fsencode(wanted)).hexdigest()[:8]
    return _writable() / f"distqat-{os.geteuid()}-{name}"


def _writable() -> Path:
    for folder in SHORT_FOLDERS:
        if os.access(folder, os.W_OK | os.X_OK):
            return Path(folder)
    raise RoleError(
        f"there is no folder for Unix sockets: {_wanted()} has too long a path, and "
        f"{', '.join(SHORT_FOLDERS)} cannot be written; set XDG_RUNTIME_DIR to a folder of this user with a "
        f"path of at most {ROOM - LONGEST_NAME - len('/distqat')} bytes"
    )


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
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return os.uname().nodename
