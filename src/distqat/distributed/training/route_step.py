"""One attempt at one inner step over a route: the calls that open it, work on it and end it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from distqat.errors import StaleAttempt, SwarmError
from distqat.protocol.call_schema import Call
from distqat.protocol.calls.step_calls import (
    AbortStep,
    AskOutcome,
    BackwardMicrobatch,
    CommitStep,
    CommitTerms,
    DecideStep,
    ForwardMicrobatch,
    OpenStep,
    PrepareStep,
    SendLabels,
    StageStanding,
    TrainMicrobatch,
)
from distqat.protocol.hop import Hop
from distqat.protocol.step_attempts import StepId
from distqat.swarm.call_messages import ask, exchange
from distqat.swarm.deadline import within
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import LinkLike, Transport
from distqat.tasks.base import Batch

logger = logging.getLogger(__name__)

A = TypeVar("A")
T = TypeVar("T")
CONTROL_TIMEOUT = 30.0
ASK_TIMEOUT = 5.0  # for a new link to a stage that did not answer, and for its answer


@dataclass(frozen=True)
class StepSettings:
    """What the stages are told of a step besides its id.

    `draw` seeds dropout (empty: the step's id does); `mark` makes it a checkpoint step of that name; `frozen`
    are the UIDs of stages that take part and stay as they are.
    """

    draw: str = ""
    mark: str = ""
    frozen: Sequence[str] = ()


@dataclass(frozen=True)
class CommitResult:
    """Who did not apply a commit, why as far as they said, and what the others answered."""

    lost: tuple[str, ...]
    faults: tuple[SwarmError, ...]
    standing: tuple[StageStanding, ...]


class RouteStep:
    """One attempt at one step. Its methods raise a SwarmError whose `at` names the replica it is about."""

    def __init__(
        self, transport: Transport, hops: Sequence[Hop], id: StepId, *, budget: float, train: bool = True
    ) -> None:
        """`budget`: seconds that a microbatch may take through all stages. `train` False: it calibrates."""
        self.id = id
        self.hops = list(hops)
        self._transport = transport
        self._budget = budget
        self.trains = train
        self._links: list[LinkLike] = []

    async def open(self, settings: StepSettings, *, microbatches: int, timeout: float) -> None:
        """Take the step locks in stage order, so that trainers that share replicas cannot deadlock.

        Args:
            microbatches: how many there will be; 0: as many as come before `prepare`.
            timeout: seconds for each lock, which other trainers and outer rounds hold.
        """
        request = OpenStep(
            self.id, tuple(self.hops), microbatches, self.trains, settings.draw, tuple(settings.frozen)
        )
        for hop in self.hops:
            link = await about(hop, self._transport.link(hop.address))
            self._links.append(link)
            await about(hop, ask(link, request, timeout=timeout, prompt=True))

    async def train(self, number: int, part: Batch, *, share: float, scale: float) -> dict[str, float]:
        """A microbatch forward and backward, the loss being computed at the last stage; its scores."""
        request = TrainMicrobatch(self.id, number, share, scale, self._budget)
        train = self._work(0, request, Message(tensors=part.inputs))
        if not self.trains:
            return dict((await train)[0].scores)
        labels = self._work(-1, SendLabels(self.id, number), Message(tensors=part.labels))
        calls: list[Awaitable[tuple[Any, Message]]] = [train, labels]
        (said, _), _ = await all_or_none(calls)
        return dict(said.scores)

    async def forward(
        self, number: int, inputs: Mapping[str, Tensor], needs_grad: Collection[str] = ()
    ) -> tuple[dict[str, Tensor], float]:
        """A microbatch through all stages: the last one's outputs, and the sum of the stages' own losses.

        The stages keep what `backward` needs. `needs_grad`: inputs whose gradient `backward` shall give.
        """
        request = ForwardMicrobatch(self.id, number, self._budget)
        own, reply = await self._work(0, request, Message({}, inputs, frozenset(needs_grad)))
        return dict(reply.tensors), own.auxiliary_loss

    async def backward(
        self, number: int, gradients: Mapping[str, Tensor], auxiliary: float
    ) -> dict[str, Tensor]:
        """Gradients of the outputs of microbatch `number` to those of its inputs.

        `auxiliary` is the gradient of the stages' own losses.
        """
        request = BackwardMicrobatch(self.id, number, self._budget, auxiliary)
        return dict((await self._work(0, request, Message(tensors=gradients)))[1].tensors)

    async def prepare(self, microbatches: int) -> list[Tensor]:
        """The gradient norms of every stage, parameter by parameter; none of a calibration."""
        request, positions = PrepareStep(self.id, microbatches), range(len(self.hops))
        if not self.trains:  # in stage order: where it meets NaN, the first stage that has it says so
            for position in positions:
                await self._control(position, request)
            return []
        replies = await all_or_none([self._control(position, request) for position in positions])
        return [reply.tensors["norms"] for _, reply in replies]

    async def commit(self, terms: CommitTerms) -> CommitResult:
        """Commit everywhere; what became of it at each stage.

        First it is decided at one stage, the first of the route that can be reached; `PreparedOutcome` says
        why. From there on the step stands in any case. Raises StaleAttempt, and nothing is committed
        anywhere, when that stage has aborted the attempt because it could not hear us.
        """
        try:
            dead = await self._decide(terms)
        except StaleAttempt:
            await self.abort()
            raise
        request = CommitStep(self.id, terms)
        calls = (self._control(position, request) for position in range(dead, len(self.hops)))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, SwarmError):
                raise outcome
        pairs = zip(self.hops[dead:], outcomes, strict=True)
        lost = [hop.uid for hop, outcome in pairs if isinstance(outcome, BaseException)]
        return CommitResult(
            (*(hop.uid for hop in self.hops[:dead]), *lost),
            tuple(outcome for outcome in outcomes if isinstance(outcome, SwarmError)),
            tuple(outcome[0] for outcome in outcomes if isinstance(outcome, tuple)),
        )

    async def abort(self) -> None:
        """Undo on every stage that may have begun; those that cannot be reached undo it by themselves."""
        calls = (self._control(position, AbortStep(self.id)) for position in range(len(self._links)))
        await asyncio.gather(*calls, return_exceptions=True)

    async def _decide(self, terms: CommitTerms) -> int:
        """Have the commit recorded at one stage; how many before it are dead."""
        for position in range(len(self.hops)):
            if await self._decided(position, DecideStep(self.id, terms, unconfirmed=position > 0)):
                return position
        return len(self.hops)

    async def _decided(self, position: int, request: DecideStep) -> bool:
        """Whether the stage has recorded the commit; False: it cannot be reached, over a new link either."""
        try:
            await self._control(position, request)
            return True
        except StaleAttempt:
            raise
        except SwarmError as error:
            logger.warning("%s: %s did not answer the commit: %s", self.id, self.hops[position].uid, error)
        hop = self.hops[position]
        try:
            self._links[position] = await within(self._transport.link(hop.address), ASK_TIMEOUT)
            asked = ask(self._links[position], AskOutcome(self.id), timeout=ASK_TIMEOUT, prompt=True)
            verdict = (await asked).verdict
            if verdict == "undecided":
                await self._control(position, request)
        except StaleAttempt:
            raise
        except (SwarmError, asyncio.TimeoutError):
            return False
        if verdict == "aborted":
            aborted = StaleAttempt(f"{hop.uid} lost touch with this trainer and aborted {self.id}")
            aborted.at = hop.uid
            raise aborted
        return verdict != "unknown"

    async def _work(self, position: int, request: Call[A], payload: Message) -> tuple[A, Message]:
        """A call with tensors of a microbatch."""
        call = exchange(self._links[position], request, payload, timeout=self._budget, prompt=True)
        return await about(self.hops[position], call)

    async def _control(self, position: int, request: Call[A]) -> tuple[A, Message]:
        """A call that overtakes tensors."""
        link = self._links[position]
        call = exchange(link, request, timeout=CONTROL_TIMEOUT, urgent=True, prompt=True)
        return await about(self.hops[position], call)


async def about(hop: Hop, call: Awaitable[T]) -> T:
    """The answer to a call; a SwarmError says whom it is about, unless a stage further behind said so."""
    try:
        return await call
    except SwarmError as error:
        error.at = error.at or hop.uid
        raise


async def all_or_none(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all; the first failure cancels the rest at once and is raised."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
