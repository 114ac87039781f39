"""What is there instead of a folder that is not: for sentences that somebody reads who mistyped a path."""

from __future__ import annotations

import difflib
from pathlib import Path


def is_path(source: str) -> bool:
    """Whether `pretrained: SOURCE` can only mean a folder: the hub has no such names."""
    return source.startswith(("/", "./", "../", "~")) or source in (".", "..") or source.count("/") > 1


def missing_folder(source: str) -> str:
    """That the folder does not exist, where it was looked for, and what is there instead."""
    folder = Path(source).expanduser().absolute()
    around = folder.parent
    if not around.is_dir():
        return f"there is no folder {folder}, nor one around it"
    if folder.exists():
        return f"{folder} is not a folder; give the folder that the file lies in"
    there = sorted(each.name for each in around.iterdir() if each.is_dir() and not each.name.startswith("."))
    close = difflib.get_close_matches(folder.name, there, n=3, cutoff=0.5)
    if close:
        return f"there is no folder {folder}; did you mean {' or '.join(map(repr, close))}?"
    shown = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "")
    return f"there is no folder {folder}; {around} holds {f'the folders {shown}' if there else 'no folders'}"
