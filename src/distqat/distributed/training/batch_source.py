"""Where a trainer's batches come from: the data server, or what the model itself does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from distqat.data.serving.batch_client import LeasedBatch

Ask = Callable[[Mapping[str, Tensor]], Awaitable[Mapping[str, Tensor]]]
"""The whole model in eval mode: named inputs to the last stage's named outputs."""


class StoppedWaiting(Exception):
    """The trainer was asked to stop while it waited for a batch."""


class BatchFeed(Protocol):
    """Batches that are leased: each is reported as consumed, or released and then comes again.

    `DataClient` is one, `RolloutFeed` the other.
    """

    async def next(self, count: int) -> LeasedBatch:
        """The next batch, of at most `count` samples."""

    async def consumed(self, batch_id: int) -> None:
        """It was trained on: a step with it is about to be committed."""

    async def release(self, batch_id: int) -> None:
        """It was not, and is the next to be given out."""

    @property
    def last_position(self) -> dict[str, Any] | None:
        """Where a run goes on after the last consumed batch; None where that means nothing."""

    @property
    def account(self) -> dict[str, Any]:
        """What the data set leaves out (`distqat.data.rows.account_of`); empty without a data set."""

    async def close(self) -> None:
        """Give back what is still leased."""
