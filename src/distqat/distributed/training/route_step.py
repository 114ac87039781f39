"""One attempt at one inner step over a route: the calls that open it, work on it and end it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from distqat.distributed.network.call_fields import Hop, step_fields, take
from distqat.errors import StaleAttempt, SwarmError
from distqat.models.auxiliary_loss import AUXILIARY
from distqat.protocol.step_attempts import StepId
from distqat.swarm.deadline import within
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import LinkLike, Transport
from distqat.tasks.base import Batch

logger = logging.getLogger(__name__)

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
    standing: tuple[Mapping[str, Any], ...]


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
        fields = {
            **step_fields(self.id),
            "draw": settings.draw,
            "route": [hop.fields() for hop in self.hops],
            "microbatches": microbatches,
            "train": self.trains,
            "frozen": list(settings.frozen),
        }
        for hop in self.hops:
            link = await about(hop, self._transport.link(hop.address))
            self._links.append(link)
            await about(hop, link.call("open", Message(fields), timeout=timeout, urgent=True, prompt=True))

    async def train(self, number: int, part: Batch, *, share: float, scale: float) -> dict[str, float]:
        """A microbatch forward and backward, the loss being computed at the last stage; its scores."""
        fields = {"microbatch": number, "share": share, "scale": scale}
        train = self._work(0, "train", Message(fields, part.inputs))
        if not self.trains:
            return take((await train).fields, "scores", dict)
        labels = self._work(-1, "labels", Message(fields, part.labels))
        reply, _ = await all_or_none([train, labels])
        return take(reply.fields, "scores", dict)

    async def forward(
        self, number: int, inputs: Mapping[str, Tensor], needs_grad: Collection[str] = ()
    ) -> tuple[dict[str, Tensor], float]:
        """A microbatch through all stages: the last one's outputs, and the sum of the stages' own losses.

        The stages keep what `backward` needs. `needs_grad`: inputs whose gradient `backward` shall give.
        """
        message = Message({"microbatch": number}, inputs, frozenset(needs_grad))
        reply = await self._work(0, "forward", message)
        return dict(reply.tensors), take(reply.fields, AUXILIARY, float)

    async def backward(
        self, number: int, gradients: Mapping[str, Tensor], auxiliary: float
    ) -> dict[str, Tensor]:
        """Gradients of the outputs of microbatch `number` to those of its inputs.

        `auxiliary` is the gradient of the stages' own losses.
        """
        message = Message({"microbatch": number, AUXILIARY: auxiliary}, gradients)
        return dict((await self._work(0, "backward", message)).tensors)

    async def prepare(self, microbatches: int) -> list[Tensor]:
        """The gradient norms of every stage, parameter by parameter; none of a calibration."""
        fields = {"microbatches": microbatches}
        positions = range(len(self.hops))
        if not self.trains:  # in stage order: where it meets NaN, the first stage that has it says so
            for position in positions:
                await self._control(position, "prepare", fields)
            return []
        replies = await all_or_none([self._control(position, "prepare", fields) for position in positions])
        return [reply.tensors["norms"] for reply in replies]

    async def commit(self, fields: Mapping[str, Any]) -> CommitResult:
        """Commit everywhere; what became of it at each stage.

        First it is decided at one stage, the first of the route that can be reached; `PreparedOutcome` says
        why. From there on the step stands in any case. Raises StaleAttempt, and nothing is committed
        anywhere, when that stage has aborted the attempt because it could not hear us.
        """
        try:
            dead = await self._decide(fields)
        except StaleAttempt:
            await self.abort()
            raise
        calls = (self._control(position, "commit", fields) for position in range(dead, len(self.hops)))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, SwarmError):
                raise outcome
        pairs = zip(self.hops[dead:], outcomes, strict=True)
        lost = [hop.uid for hop, outcome in pairs if isinstance(outcome, BaseException)]
        return CommitResult(
            (*(hop.uid for hop in self.hops[:dead]), *lost),
            tuple(outcome for outcome in outcomes if isinstance(outcome, SwarmError)),
            tuple(outcome.fields for outcome in outcomes if isinstance(outcome, Message)),
        )

    async def abort(self) -> None:
        """Undo on every stage that may have begun; those that cannot be reached undo it by themselves."""
        calls = (self._control(position, "abort", {}) for position in range(len(self._links)))
        await asyncio.gather(*calls, return_exceptions=True)

    async def _decide(self, fields: Mapping[str, Any]) -> int:
        """Have the commit recorded at one stage; how many before it are dead."""
        for position in range(len(self.hops)):
            if await self._decided(position, {**fields, "unconfirmed": position > 0}):
                return position
        return len(self.hops)

    async def _decided(self, position: int, fields: Mapping[str, Any]) -> bool:
        """Whether the stage has recorded the commit; False: it cannot be reached, over a new link either."""
        try:
            await self._control(position, "decide", fields)
            return True
        except StaleAttempt:
            raise
        except SwarmError as error:
            logger.warning("%s: %s did not answer the commit: %s", self.id, self.hops[position].uid, error)
        hop = self.hops[position]
        try:
            self._links[position] = await within(self._transport.link(hop.address), ASK_TIMEOUT)
            known = Message(step_fields(self.id))
            link = self._links[position]
            reply = await link.call("outcome", known, timeout=ASK_TIMEOUT, urgent=True, prompt=True)
            if reply.fields.get("verdict") == "undecided":
                await self._control(position, "decide", fields)
        except StaleAttempt:
            raise
        except (SwarmError, asyncio.TimeoutError):
            return False
        if reply.fields.get("verdict") == "aborted":
            aborted = StaleAttempt(f"{hop.uid} lost touch with this trainer and aborted {self.id}")
            aborted.at = hop.uid
            raise aborted
        return reply.fields.get("verdict") != "unknown"

    async def _work(self, position: int, method: str, message: Message) -> Message:
        """A call with tensors of a microbatch."""
        fields = {**step_fields(self.id), **message.fields, "budget": self._budget}
        sent = Message(fields, message.tensors, message.needs_grad)
        call = self._links[position].call(method, sent, timeout=self._budget, prompt=True)
        return await about(self.hops[position], call)

    async def _control(self, position: int, method: str, fields: Mapping[str, Any]) -> Message:
        """A call that overtakes tensors."""
        message = Message({**step_fields(self.id), **fields})
        call = self._links[position].call(method, message, timeout=CONTROL_TIMEOUT, urgent=True, prompt=True)
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
