"""Where the paths of a configuration count from: the working directory, else its file's folder.

One rule for all keys that name something to read (data, plugins, tokenizers, pretrained models); what is
written counts from the working directory. A path stays in the configuration as it was given, since hosts with
other folders must agree on it, and is looked up here when it is opened.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from distqat.errors import ConfigError

RULE = "paths count from the working directory, then from the folder of the configuration file"

_beside: tuple[Path, ...] = ()


def count_also_from(folders: Iterable[Path]) -> None:
    """Tell the folders of the configuration that was loaded last."""
    global _beside
    _beside = tuple(folder.resolve() for folder in folders)


def folders() -> tuple[Path, ...]:
    """The folders that a path is looked for in, in order."""
    return tuple(dict.fromkeys((Path.cwd(), *_beside)))


def find(name: str) -> Path:
    """The path that `name` means; where nothing is there, the one in the working directory."""
    return next((path for path in candidates(name) if path.exists()), candidates(name)[0])


def refuse_twice(name: str) -> None:
    """Raises ConfigError when two folders hold a path: what it means would depend on where one stands."""
    there = [path for path in candidates(name) if path.exists()]
    if len({path.resolve() for path in there}) > 1:
        raise ConfigError(
            f"{name!r} is there twice, as {there[0]} and as {there[1]}: {RULE}; give the whole path of one"
        )


def candidates(name: str) -> list[Path]:
    """Every path that `name` may mean."""
    path = Path(name).expanduser()
    if path.is_absolute():
        return [path]
    where = folders() if set(path.parts) - {".."} else folders()[:1]  # `.` is where one stands
    return [folder / path for folder in where]


def looked_elsewhere(name: str) -> str:
    """As `looked_at` in brackets, where a path was looked for in more than one folder; else ""."""
    return f" ({looked_at(name)})" if len(candidates(name)) > 1 else ""


def looked_at(name: str) -> str:
    """Where a path was looked for: `looked for /here/data and /configs/data: paths count ...`."""
    told = f"looked for {' and '.join(str(path) for path in candidates(name))}"
    return told if Path(name).expanduser().is_absolute() else f"{told}: {RULE}"
