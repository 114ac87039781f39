"""What lies at a local path: the files of each split, of one kind."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from distqat.config_paths import find, looked_at
from distqat.data.rows import LeftOut
from distqat.data.sources.sample_stream import HELDOUT_SPLITS
from distqat.errors import DataError

TRAIN = "train"
IMAGES = "images"
KINDS = {
    **dict.fromkeys(
        (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"), IMAGES
    ),
    ".parquet": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".txt": "text",
}
"""By the ending of a file; others are left out. All but images are names in `readers.READERS`."""
ALIASES = {"training": TRAIN, "testing": "test"}
"""Other names of folders that are splits."""

_SPLIT = re.compile(rf"({'|'.join((TRAIN, *HELDOUT_SPLITS))})(?![a-z])", re.IGNORECASE)
_FOLDER = re.compile("|".join((*ALIASES, TRAIN, *HELDOUT_SPLITS)), re.IGNORECASE)


@dataclass(frozen=True)
class LocalFiles:
    """Files of one kind below `root`, by split, each sorted by path."""

    root: Path
    kind: str
    splits: dict[str, list[Path]]
    left_out: LeftOut = field(default_factory=lambda: LeftOut("files"))
    """Files that are not read, by their endings."""

    @property
    def fingerprint(self) -> str:
        """Of the names and sizes of all files: another one means other positions."""
        whole = hashlib.sha256()
        for split, files in sorted(self.splits.items()):
            for file in files:
                place = file.relative_to(self.root) if file != self.root else file.name
                line = f"{split} {place} {file.stat().st_size}\n"
                whole.update(line.encode("utf-8", "surrogateescape"))  # names may be any bytes
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
    left_out = LeftOut("files")
    for file in _walk(root):
        kind = KINDS.get(file.suffix.lower())
        left_out.read += 1
        if kind is None:
            left_out.leave(f"ending in {file.suffix}" if file.suffix else "without an ending", str(file))
        elif file.name.startswith("."):
            left_out.leave("beginning with a dot", str(file))
        else:
            kinds.setdefault(kind, file)
            splits.setdefault(split_of(file.relative_to(root)) if file != root else TRAIN, []).append(file)
    if not kinds:
        raise DataError(f"{name!r} holds no file that can be read; known endings: {', '.join(KINDS)}")
    if len(kinds) > 1:
        found = ", ".join(f"{kind} ({file.name})" for kind, file in sorted(kinds.items()))
        raise DataError(f"{name!r} holds files of several kinds: {found}; name a folder or file of one kind")
    return LocalFiles(root, next(iter(kinds)), splits, left_out)


def split_of(place: Path) -> str:
    """`test` of `Test/cat/1.png` and of `data/test-00000.parquet`; what says nothing is to be trained on.

    A folder says it before the name of the file, the outermost first, in capitals or not; the name of an
    image in a folder says nothing.
    """
    folder = split_folder(place)
    if folder is not None:
        return split_name(place.parts[folder])
    if len(place.parts) > 1 and KINDS.get(place.suffix.lower()) == IMAGES:
        return TRAIN
    found = _SPLIT.match(place.stem)
    return split_name(found[1]) if found else TRAIN


def split_folder(place: Path) -> int | None:
    """Which of the folders of a path is a split, by number."""
    return next((i for i, part in enumerate(place.parts[:-1]) if _FOLDER.fullmatch(part)), None)


def class_of(place: Path) -> str | None:
    """The innermost folder that does not name a split; None for an image outside any."""
    split = split_folder(place)
    folders = [part for i, part in enumerate(place.parts[:-1]) if i != split]
    return folders[-1] if folders else None


def split_name(name: str) -> str:
    """A split's name as we write it: `train` of `Train` and of `Training`."""
    return ALIASES.get(name.lower(), name.lower())


def _walk(root: Path) -> Iterator[Path]:
    """Files in the order of their paths; folders that begin with a dot are left out."""
    if root.is_file():
        yield root
        return
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for file in sorted(files):
            if not file.startswith(".") or Path(file).suffix.lower() in KINDS:
                yield Path(folder, file)
