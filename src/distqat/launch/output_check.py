"""Files that a command writes at its end: that they can be written is found out at its beginning."""

from __future__ import annotations

import os
from pathlib import Path

from distqat.errors import ConfigError


def check_output(path: Path, flag: str, *, folder: bool = False) -> None:
    """Make the folder of `path` (`folder`: `path` itself). ConfigError: it cannot be written there."""
    place = path if folder else path.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ConfigError(f"{flag} {path}: {place} is a file, not a folder") from error
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot make the folder {place}: {error.strerror}") from error
    if not folder and path.is_dir():
        raise ConfigError(f"{flag} {path} is a folder; give the name of a file in it")
    if not os.access(place, os.W_OK):
        raise ConfigError(f"{flag} {path}: the folder {place} is not writable")
