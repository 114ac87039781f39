"""What a server keeps of the attempt that holds its window: the way on, and whose turn it is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from distqat.distributed.network.call_fields import Hop
from distqat.protocol.step_attempts import StepId
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import LinkLike


class MicrobatchTurns:
    """Microbatches take turns in their order, whatever order they arrive in."""

    def __init__(self) -> None:
        self._next = 0
        self._waiting: dict[int, asyncio.Future[None]] = {}

    async def mine(self, number: int) -> None:
        """Wait until every lower number is through."""
        if number > self._next:
            self._waiting[number] = asyncio.get_running_loop().create_future()
            await self._waiting[number]

    def through(self, number: int) -> None:
        """`number` has taken its turn."""
        self._next = number + 1
        waiting = self._waiting.pop(self._next, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


@dataclass
class OpenAttempt:
    """One attempt at this stage; `train` False: it calibrates; `frozen`: nothing is trained here."""

    id: StepId
    route: tuple[Hop, ...]
    position: int
    microbatches: int
    train: bool
    hold: asyncio.Semaphore  # graphs held at once (1F1B)
    next_link: LinkLike | None
    frozen: bool = False
    forward_turns: MicrobatchTurns = field(default_factory=MicrobatchTurns)
    backward_turns: MicrobatchTurns = field(default_factory=MicrobatchTurns)
    labels: dict[int, asyncio.Future[Mapping[str, Tensor]]] = field(default_factory=dict)
    answers: dict[tuple[str, int], asyncio.Future[Message]] = field(default_factory=dict)  # by call
    running: set[asyncio.Task[object]] = field(default_factory=set)
    prepared: bool = False
    unconfirmed: dict[str, Any] | None = None  # a commit whose decision its trainer could not learn
    resolving: asyncio.Future[None] | None = None  # its route is being asked
    applying: asyncio.Future[Message] | None = None  # its commit, once that has begun

    def labels_of(self, microbatch: int) -> asyncio.Future[Mapping[str, Tensor]]:
        """The labels of a microbatch, which may come before or after its activations."""
        if microbatch not in self.labels:
            self.labels[microbatch] = asyncio.get_running_loop().create_future()
        return self.labels[microbatch]

    @property
    def last(self) -> bool:
        return self.position == len(self.route) - 1

    def cancel(self) -> None:
        """Stop whatever still runs for this attempt."""
        current = asyncio.current_task()
        for task in self.running:
            if task is not current:
                task.cancel()
