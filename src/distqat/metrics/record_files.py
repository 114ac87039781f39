"""Records of a run as they lie on disk, for whoever judges it afterwards or while it trains."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distqat.metrics.sink import FOLDER


def read_records(log_dir: Path, kind: str) -> list[dict[str, Any]]:
    """All records of roles of one kind ("trainer", "server", "client"), each file in its order.

    A last line that is not complete (its writer is at it, or was killed) is left out.
    """
    paths = sorted((log_dir / FOLDER).glob(f"{kind}*.jsonl"))
    return [record for path in paths for record in _records(path.read_text(encoding="utf-8"))]


class RecordTail:
    """The records of a kind that were added since the last look."""

    def __init__(self, log_dir: Path, kind: str) -> None:
        self._folder = log_dir / FOLDER
        self._kind = kind
        self._read: dict[Path, int] = {}

    def fresh(self) -> list[dict[str, Any]]:
        """New complete records, by time."""
        found: list[dict[str, Any]] = []
        for path in self._folder.glob(f"{self._kind}*.jsonl"):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            found += _records(whole.decode("utf-8", errors="replace"))
        return sorted(found, key=lambda record: float(record.get("time", 0.0)))


def _records(text: str) -> Iterator[dict[str, Any]]:
    for line in text.split("\n")[:-1]:
        try:
            record = json.loads(line)
        except ValueError:  # cut short by a death, and another life wrote on
            continue
        if isinstance(record, dict):
            yield record
