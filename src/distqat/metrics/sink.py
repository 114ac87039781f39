"""Numbers leave through one sink: JSON lines always, Weights & Biases and TensorBoard beside it.

A sink never ends training: what it cannot write it drops, and says so once in the log.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from distqat.metrics.background_sink import BackgroundSink
from distqat.metrics.record_values import plain
from distqat.metrics.services import TensorBoard, WandbRun

log = logging.getLogger(__name__)

FOLDER = "metrics"


class Sink(Protocol):
    """Where records go. Methods return at once and raise nothing."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Take one record; nested maps are allowed."""

    def close(self) -> None:
        """Write out what is waiting, within seconds. Idempotent."""


class NullSink:
    """The null object: for tests and for roles that measure nothing."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Drop a record."""

    def close(self) -> None:
        """Nothing to close."""


class JsonLines:
    """One JSON object per line in `path`, with `time` (seconds since 1970) and `role`, flushed at once."""

    def __init__(self, path: Path, role: str, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._role = role
        self._clock = clock
        self._failed = False
        self._file: Any = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            self._tell(error)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record as one line of JSON, with time and role; a failing disk is logged, not raised."""
        if self._file is None:
            return
        line = {"time": self._clock(), "role": self._role, **record}
        try:
            self._file.write(json.dumps(plain(line), default=str) + "\n")
            self._file.flush()
        except OSError as error:  # a full disk: the next record may fit again
            self._tell(error)

    def close(self) -> None:
        """Close the file; records that come later are dropped."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                self._tell(error)

    def _tell(self, error: OSError) -> None:
        if not self._failed:
            log.warning("Metrics cannot be written to %s (%s); training goes on without", self._path, error)
        self._failed = True


class Fanout:
    """Every record to every sink."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = tuple(sinks)

    def write(self, record: Mapping[str, Any]) -> None:
        """Give a record to every sink."""
        for sink in self.sinks:
            sink.write(record)

    def close(self) -> None:
        """Close every sink."""
        for sink in self.sinks:
            sink.close()


def open_sinks(log_dir: str | os.PathLike[str], role: str, wandb_project: str | None = None) -> Sink:
    """The sinks of one process.

    Args:
        log_dir: of the run; JSON lines go to `{log_dir}/metrics/{role}.jsonl`.
        role: names the file, the W&B run and the TensorBoard run, e.g. `trainer_0`.
        wandb_project: also record to Weights & Biases, where the package is installed: online with a key
            (`WANDB_API_KEY` or a login), else offline.
    """
    folder = Path(log_dir)
    sinks: list[Sink] = [JsonLines(folder / FOLDER / f"{role}.jsonl", role)]
    if wandb_project is not None and find_spec("wandb") is None:
        log.info("W&B is not installed (pip install 'distqat[wandb]'); metrics are kept in %s only", folder)
    elif wandb_project is not None:
        project = wandb_project
        sinks.append(BackgroundSink(lambda: WandbRun(project, role, folder), name="W&B"))
    if find_spec("tensorboard") is not None:
        sinks.append(BackgroundSink(lambda: TensorBoard(folder / "tensorboard" / role), name="TensorBoard"))
    return Fanout(sinks)
