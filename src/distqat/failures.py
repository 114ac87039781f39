"""What an exception says of itself, and when it has repeated often enough to be believed. Pure."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path

from distqat.errors import DistqatError

REPEATS = 3  # the same failure so often in a row, without a success between: it will not go away

_PACKAGE = Path(__file__).resolve().parent
_FAILPOINTS = _PACKAGE / "failpoints.py"  # which raises in the name of its caller
_INSTALLED = tuple(
    str(Path(path).resolve())
    for path in {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
)


IMPORTS = {
    **dict.fromkeys(("register_expert_class", "MODEL_TYPES"), "distqat.models.registry"),
    **dict.fromkeys(("register_task", "Task", "TaskSettings", "Batch", "Sample"), "distqat.tasks"),
    **dict.fromkeys(("register_dataset", "Source"), "distqat.data.source"),
    **dict.fromkeys(("nn", "Tensor"), "torch"),
    "F": "torch.nn import functional as F",
    "torch": "",
}
"""Where the names come from that the file of a model, a task or a data set needs."""


def describe(error: BaseException) -> str:
    """One sentence: the text of an error of ours, else kind, text and place of the exception."""
    text = " ".join(str(error).split())
    if isinstance(error, DistqatError) and text:
        return text
    if isinstance(error, SyntaxError) and error.filename:
        text = str(error.msg)  # its text names the file again, without the folder
    place = place_of(error)
    where = f" ({place})" if place else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{missing_import(error)}{where}"


def place_of(error: BaseException) -> str:
    """`file:line` of the innermost frame in this package or in the user's own code; "" without a traceback.

    What happens inside an installed library is blamed on the line that called it.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(Path(error.filename).resolve())}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        path = Path(frame.filename).resolve()
        if path == _FAILPOINTS:
            continue
        ours = path.is_relative_to(_PACKAGE)
        if ours or not (str(path).startswith(_INSTALLED) or frame.filename.startswith("<")):
            return f"{_shown(path)}:{frame.lineno}"
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def missing_import(error: BaseException) -> str:
    """The line that a file lacks which uses one of our names, or torch's, as the end of a sentence."""
    if not isinstance(error, NameError) or error.name not in IMPORTS:
        return ""
    origin = IMPORTS[error.name]
    line = f"from {origin} import {error.name}" if origin else f"import {error.name}"
    return f"; the file lacks the line `{f'from {origin}' if ' import ' in origin else line}`"


def _shown(path: Path) -> str:
    return str(path.relative_to(_PACKAGE.parent) if path.is_relative_to(_PACKAGE) else path)


def is_shortage(error: BaseException) -> bool:
    """Whether it tells of memory or disk that is short now, which may be otherwise in a minute."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return "allocate memory" in str(error) or "No space left" in str(error)


@dataclass
class Repeats:
    """Counts failures that are the same since the last success."""

    limit: int = REPEATS
    _seen: dict[Hashable, int] = field(default_factory=dict)

    def add(self, failure: Hashable) -> bool:
        """Count one; True: it has come `limit` times without a success between."""
        self._seen[failure] = self._seen.get(failure, 0) + 1
        return self._seen[failure] >= self.limit

    def clear(self) -> None:
        """It went well."""
        self._seen.clear()
