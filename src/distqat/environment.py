"""What a process needs of its surroundings before its libraries are imported: text in any locale, caches.

A locale that cannot spell a file name, or a cache that cannot be written, must not end a run.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import tempfile
from pathlib import Path

SPELL = "distqat.spell"
"""An error handler: what an encoding lacks is written in what it has; bytes are read as file names are."""

_SPELLED = {"→": "->", "−": "-", "×": "x", "±": "+-", "…": "...", "≥": ">=", "≤": "<="}
_UTF8 = "PYTHONUTF8"
# Variables of the Hugging Face libraries, and the folder of each in HF_HOME.
_CACHES = {
    "HF_DATASETS_CACHE": "datasets",
    "HF_HUB_CACHE": "hub",
    "HF_MODULES_CACHE": "modules",
    "HF_XET_CACHE": "xet",
}


def prepare() -> None:
    """To be called first by whatever a user starts. May be repeated."""
    use_utf8()
    take_any_text()
    moved = writable_caches()
    if moved and sys.stderr is not None:
        sys.stderr.write(f"distqat: {moved}\n")


def use_utf8() -> None:
    """Start this command again in Python's UTF-8 mode where file names could hold ASCII alone.

    That is LC_ALL=POSIX with UTF-8 mode switched off; the mode is decided as the interpreter starts.
    """
    if sys.getfilesystemencoding() != "ascii" or os.environ.get(_UTF8) == "1":
        return
    os.environ[_UTF8] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def take_any_text() -> None:
    """Printing never fails for what the locale cannot spell."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=SPELL)


def printable(text: str) -> str:
    """`text` in characters that UTF-8 can encode: bytes of a file name that are no UTF-8 become U+FFFD."""
    return text.encode("utf-8", SPELL).decode("utf-8", "replace")


def writable_caches() -> str | None:
    """Move caches of the Hugging Face libraries that cannot be written, and say so; None: all can be.

    What a hub cache that may only be read holds is still used.
    """
    home = os.environ.get("HF_HOME") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "huggingface"
    )
    shut = [
        (variable, path)
        for variable, folder in _CACHES.items()
        if not _writable(path := Path(os.environ.get(variable) or Path(home, folder)))
        and not (folder == "hub" and path.is_dir())
    ]
    if not shut:
        return None
    base = Path(tempfile.gettempdir(), f"distqat-cache-{os.geteuid()}")
    for variable, _ in shut:
        os.environ[variable] = str(base / _CACHES[variable])
    return f"{shut[0][1].parent} cannot be written; what is fetched is kept in {base} (set HF_HOME)"


def _writable(folder: Path) -> bool:
    """Whether `folder` can be made and written."""
    there = next((place for place in (folder, *folder.parents) if place.exists()), Path("/"))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        return codecs.lookup_error("surrogateescape")(error)
    spelled = b""
    for character in error.object[error.start : error.end]:
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that the locale could not read: as it was
            spelled += bytes([code - 0xDC00])
        else:
            spelled += _SPELLED.get(character, character).encode("ascii", "backslashreplace")
    return spelled, error.end


codecs.register_error(SPELL, _spell)
