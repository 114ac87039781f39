"""What a server keeps of the attempt that holds its step lock: the way on, and whose turn it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from distqat.errors import Refused
from distqat.protocol.calls.step_calls import CommitTerms, OpenStep
from distqat.protocol.hop import Hop
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
    """The work of one attempt at this stage; whether it is prepared or decided, the step lock says."""

    id: StepId
    route: tuple[Hop, ...]
    position: int  # of this stage on the route
    microbatches: int  # 0: as many as come before the prepare
    train: bool  # False: it calibrates
    frozen: bool  # nothing is trained at this stage
    hold: asyncio.Semaphore  # graphs held at once (1F1B)
    next_link: LinkLike | None = None
    began: float = field(default_factory=time.monotonic)  # seconds
    forward_turns: MicrobatchTurns = field(default_factory=MicrobatchTurns)
    backward_turns: MicrobatchTurns = field(default_factory=MicrobatchTurns)
    labels: dict[int, asyncio.Future[Mapping[str, Tensor]]] = field(default_factory=dict)
    answers: dict[tuple[str, int], asyncio.Future[Message]] = field(default_factory=dict)  # by call
    running: set[asyncio.Task[object]] = field(default_factory=set)
    unconfirmed: CommitTerms | None = None  # a commit whose decision its trainer could not learn
    resolving: asyncio.Future[None] | None = None  # its route is being asked

    @classmethod
    def of(cls, request: OpenStep, uid: str) -> OpenAttempt:
        """What a request asks of the stage `uid`. Raises Refused."""
        position = next((i for i, hop in enumerate(request.route) if hop.uid == uid), None)
        if position is None:
            raise Refused(f"{uid} is not on the route of {request.id}")
        behind = len(request.route) - position - 1
        return cls(
            id=request.id,
            route=request.route,
            position=position,
            microbatches=request.microbatches,
            train=request.train,
            frozen=uid in request.frozen,
            hold=asyncio.Semaphore(behind + 2),
        )

    @property
    def following(self) -> Hop | None:
        """The next stage of the route; None at the last one."""
        return None if self.last else self.route[self.position + 1]

    @property
    def last(self) -> bool:
        """Whether this is the last stage of the route, which computes the loss."""
        return self.position == len(self.route) - 1

    def labels_of(self, microbatch: int) -> asyncio.Future[Mapping[str, Tensor]]:
        """The labels of a microbatch, which may come before or after its activations."""
        if microbatch not in self.labels:
            self.labels[microbatch] = asyncio.get_running_loop().create_future()
        return self.labels[microbatch]

    def cancel(self) -> None:
        """Stop whatever still runs for this attempt."""
        current = asyncio.current_task()
        for task in self.running:
            if task is not current:
                task.cancel()
