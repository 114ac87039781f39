"""A slow sink behind a bounded queue and a thread of its own."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

log = logging.getLogger(__name__)

QUEUE = 1000
CLOSE_S = 5.0
Record = Mapping[str, Any]


class BlockingSink(Protocol):
    """A sink that may block and raise: a service, a foreign library."""

    def write(self, record: Record) -> None:
        """Record it; may block."""

    def close(self) -> None:
        """Flush and close; may block."""


class BackgroundSink:
    """Opens, feeds and closes a slow sink in a thread; never blocks and never raises.

    Records that do not fit into the queue are dropped; the first drop and the first error are logged.
    """

    def __init__(
        self, open_sink: Callable[[], BlockingSink], *, name: str, size: int = QUEUE, close_s: float = CLOSE_S
    ) -> None:
        self._open = open_sink
        self._name = name
        self._close_s = close_s
        self._queue: queue.Queue[Record | None] = queue.Queue(size)
        self._told = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"distqat-{name}", daemon=True)
        self._thread.start()

    def write(self, record: Record) -> None:
        """Queue a record and return at once; dropped after `close`, or where the queue is full."""
        if self._closed.is_set():
            return
        try:
            self._queue.put_nowait(dict(record))
        except queue.Full:
            self._tell("is slow; some metrics are dropped")

    def close(self) -> None:
        """Wait at most `close_s` for what is queued."""
        if not self._closed.is_set():
            self._closed.set()
            with contextlib.suppress(queue.Full):  # then the thread looks at `_closed` when it is through
                self._queue.put_nowait(None)
            self._thread.join(self._close_s)

    def _work(self) -> None:
        sink: BlockingSink | None = None
        try:
            sink = self._open()
            while (record := self._next()) is not None:
                sink.write(record)
        except Exception as error:  # noqa: BLE001 - whatever a metrics service does, training goes on
            self._tell(f"failed ({type(error).__name__}: {error}); metrics are kept locally")
            self._closed.set()
        finally:
            self._end(sink)

    def _next(self) -> Record | None:
        while True:
            try:
                return self._queue.get(timeout=1.0)
            except queue.Empty:
                if self._closed.is_set():
                    return None

    def _end(self, sink: BlockingSink | None) -> None:
        if sink is None:
            return
        try:
            sink.close()
        except Exception as error:  # noqa: BLE001 - as above
            self._tell(f"failed at its end ({type(error).__name__}: {error})")

    def _tell(self, what: str) -> None:
        if not self._told:
            self._told = True
            log.warning("%s %s", self._name, what)
