"""What lies at a local path: the files of each split, of one kind."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distqat.data.stream import HELDOUT_SPLITS
from distqat.errors import DataError
from distqat.places import find, looked_at

TRAIN = "train"
IMAGES = "images"
KINDS = {
    **dict.fromkeys(
        (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"), IMAGES
    ),
    ".parquet": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".txt": "text",
}
"""By the ending of a file; others are left out. All but images are names of readers of `datasets`."""

_SPLIT = re.compile(rf"({'|'.join((TRAIN, *HELDOUT_SPLITS))})(?![a-z])")


@dataclass(frozen=True)
class LocalFiles:
    """Files of one kind below `root`, by split, each sorted by path."""

    root: Path
    kind: str
    splits: dict[str, list[Path]]

    @property
    def fingerprint(self) -> str:
        """Of the names and sizes of all files: another one means other positions."""
        whole = hashlib.sha256()
        for split, files in sorted(self.splits.items()):
            for file in files:
                place = file.relative_to(self.root) if file != self.root else file.name
                whole.update(f"{split} {place} {file.stat().st_size}\n".encode())
        return whole.hexdigest()[:16]


def is_local(name: str) -> bool:
    """Whether `data.dataset_name` is a path: a hub name never begins so."""
    return name in (".", "..") or name.startswith(("./", "../", "/", "~"))


def find_files(name: str) -> LocalFiles:
    """The files at a path. DataError: nothing is there, nothing that we read, or several kinds of it."""
    root = find(name)
    if not root.exists():
        raise DataError(
            f"data.dataset_name: there is no file or folder {name!r} ({looked_at(name)}); "
            "a name of the hub does not begin with '.', '/' or '~'"
        )
    splits: dict[str, list[Path]] = {}
    kinds: dict[str, Path] = {}
    for file in _walk(root):
        kind = KINDS.get(file.suffix.lower())
        if kind is not None:
            kinds.setdefault(kind, file)
            splits.setdefault(split_of(file.relative_to(root)) if file != root else TRAIN, []).append(file)
    if not kinds:
        raise DataError(f"{name!r} holds no file that can be read; known endings: {', '.join(KINDS)}")
    if len(kinds) > 1:
        found = ", ".join(f"{kind} ({file.name})" for kind, file in sorted(kinds.items()))
        raise DataError(f"{name!r} holds files of several kinds: {found}; name a folder or file of one kind")
    return LocalFiles(root, next(iter(kinds)), splits)


def split_of(place: Path) -> str:
    """`test` of `test/cat/1.png` and of `test-00000.parquet`; what says nothing is to be trained on."""
    first = place.parts[0] if len(place.parts) > 1 else place.stem
    found = _SPLIT.fullmatch(first) if len(place.parts) > 1 else _SPLIT.match(first)
    return found[1] if found else TRAIN


def _walk(root: Path) -> Iterator[Path]:
    """Files in the order of their paths; what begins with a dot is left out."""
    if root.is_file():
        yield root
        return
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for file in sorted(files):
            if not file.startswith("."):
                yield Path(folder, file)
