"""One microbatch at one stage: the nested call of a training step, and the two halves of autograd's road."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from distqat.distributed.network.call_fields import Hop, take
from distqat.distributed.serving.activation_encoder import StageOutputs
from distqat.distributed.serving.attempt_state import OpenAttempt
from distqat.distributed.serving.compute_thread import ComputeThread, Priority
from distqat.distributed.serving.replica import MicrobatchWeight, StageReplica
from distqat.errors import BadFrame, SwarmError
from distqat.failpoints import failpoint
from distqat.models.auxiliary_loss import AUXILIARY
from distqat.swarm.incoming_call import IncomingCall
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import Transport

T = TypeVar("T")

STANDS = "stands"
"""In a message with activations: no weights up to here move any more."""


class Microbatches:
    """The work of one replica on microbatches; who may ask for it the step lock says."""

    def __init__(self, replica: StageReplica, compute: ComputeThread, transport: Transport) -> None:
        self._replica = replica
        self._compute = compute
        self._transport = transport

    async def run(self, method: str, attempt: OpenAttempt, message: Message) -> Message:
        """Answer one of the four calls; one that is repeated gets the answer of the first."""
        if method == "labels":
            return self._labels(attempt, message)
        key = method, _number(attempt, message)
        if key in attempt.answers:
            return await asyncio.shield(attempt.answers[key])
        attempt.answers[key] = asyncio.ensure_future(self._first(method, attempt, message))
        return await attempt.answers[key]

    async def _first(self, method: str, attempt: OpenAttempt, message: Message) -> Message:
        message = self._told_on(attempt, message)
        if method == "forward":
            return await self._forward(attempt, message)
        if method == "backward":
            return await self._backward(attempt, message)
        if not attempt.train:
            return await self._observe(attempt, message)
        if attempt.last:
            return await self._train_last(attempt, message)
        return await self._train_through(attempt, message)

    def _told_on(self, attempt: OpenAttempt, message: Message) -> Message:
        """The message, saying to the next stage whether weights stand up to here, ours included.

        Rounds end at each stage by themselves. Statistics of what a stage gives that still trains are none.
        """
        stands = self._replica.measuring and (attempt.position == 0 or bool(message.fields.get(STANDS)))
        if self._replica.measuring and not stands:
            self._replica.moved_before()
        fields = {key: value for key, value in message.fields.items() if key != STANDS}
        return replace(message, fields={**fields, STANDS: True} if stands else fields)

    def _labels(self, attempt: OpenAttempt, message: Message) -> Message:
        """Labels of a microbatch, from the trainer straight to the last stage."""
        waiting = attempt.labels_of(_number(attempt, message))
        if not waiting.done():
            waiting.set_result(dict(message.tensors))
        return Message()

    async def _train_last(self, attempt: OpenAttempt, message: Message) -> Message:
        number = _number(attempt, message)
        labels: Mapping[str, Tensor] = await attempt.labels_of(number)
        weighing = weighing_of(message)
        gradients, scores = await self._in_turn(
            attempt,
            number,
            lambda: self._replica.loss(number, message.tensors, message.needs_grad, labels, weighing),
        )
        failpoint("stage.backward.before_answer")
        return Message({"scores": scores}, gradients)

    async def _train_through(self, attempt: OpenAttempt, message: Message) -> Message:
        number, weighing = _number(attempt, message), weighing_of(message)
        await attempt.forward_turns.mine(number)
        async with attempt.hold:
            failpoint("stage.forward")
            job = self._compute.submit(
                Priority.FORWARD,
                "forward",
                lambda: self._replica.forward(number, message.tensors, message.needs_grad),
            )
            attempt.forward_turns.through(number)
            reply = await self._call_next(attempt, (await job).message(message.fields))
            await attempt.backward_turns.mine(number)
            failpoint("stage.backward.before_apply")
            back = self._compute.submit(
                Priority.BACKWARD,
                "backward",
                lambda: self._replica.backward(number, reply.tensors, weighing),
            )
            attempt.backward_turns.through(number)
            gradients, own = await back
        failpoint("stage.backward.before_answer")
        return Message({"scores": with_own_loss(take(reply.fields, "scores", dict), own)}, gradients)

    async def _observe(self, attempt: OpenAttempt, message: Message) -> Message:
        number = _number(attempt, message)
        outputs = await self._in_turn(attempt, number, lambda: self._replica.observe(number, message.tensors))
        if attempt.last:
            return Message({"scores": {}})
        return await self._call_next(attempt, outputs.message(message.fields))

    async def _in_turn(self, attempt: OpenAttempt, number: int, job: Callable[[], T]) -> T:
        """Run a forward job once those of all lower microbatches are queued."""
        await attempt.forward_turns.mine(number)
        running = self._compute.submit(Priority.FORWARD, "forward", job)
        attempt.forward_turns.through(number)
        return await running

    async def _call_next(self, attempt: OpenAttempt, message: Message, method: str = "train") -> Message:
        assert attempt.next_link is not None
        assert attempt.following is not None
        budget = take(message.fields, "budget", float)
        behind = len(attempt.route) - attempt.position
        budget = budget * (behind - 1) / behind
        fields = {**message.fields, "budget": budget}
        try:
            return await attempt.next_link.call(
                method, replace(message, fields=fields), timeout=budget, prompt=True
            )
        except SwarmError as error:
            raise about(error, attempt.following.uid) from error

    async def _forward(self, attempt: OpenAttempt, message: Message) -> Message:
        """Forward through this stage and those behind it; the graph stays until `backward`."""
        number = _number(attempt, message)

        def forward() -> tuple[StageOutputs, float]:
            outputs = self._replica.forward(number, message.tensors, message.needs_grad)
            return outputs, self._replica.auxiliary(number)

        outputs, own = await self._in_turn(attempt, number, forward)
        if attempt.last:
            return Message({AUXILIARY: own}, outputs.tensors)
        reply = await self._call_next(attempt, outputs.message(message.fields), "forward")
        return replace(reply, fields={AUXILIARY: own + take(reply.fields, AUXILIARY, float)})

    async def _backward(self, attempt: OpenAttempt, message: Message) -> Message:
        """Gradients of the last stage's outputs to gradients of this stage's inputs.

        The message also says how the stages' own losses count in what the caller made of the outputs.
        """
        number, weight = _number(attempt, message), take(message.fields, AUXILIARY, float)
        gradients: Mapping[str, Tensor] = message.tensors
        if not attempt.last:
            gradients = (await self._call_next(attempt, message, "backward")).tensors
        if attempt.microbatches:  # known: gradients add up in the order of the microbatches, as in `train`
            await attempt.backward_turns.mine(number)
        job = self._compute.submit(
            Priority.BACKWARD,
            "backward",
            lambda: self._replica.backward(number, gradients, MicrobatchWeight(scale=weight)),
        )
        attempt.backward_turns.through(number)
        return Message(tensors=(await job)[0])

    async def evaluate(self, call: IncomingCall) -> Message:
        """Forward in eval mode through this stage and those behind it, outside any step."""
        fields, tensors = call.message.fields, dict(call.message.tensors)
        route = [Hop.parse(hop) for hop in take(fields, "route", list)]
        outputs = await self._compute.submit(
            Priority.FORWARD, "evaluate", lambda: self._replica.evaluate(tensors)
        )
        if not route:
            return Message(tensors=outputs.tensors)
        following = {**fields, "route": [hop.fields() for hop in route[1:]]}
        budget = take(fields, "budget", float)
        try:
            link = await self._transport.link(route[0].address)
            return await link.call("evaluate", outputs.message(following), timeout=budget, prompt=True)
        except SwarmError as error:
            raise about(error, route[0].uid) from error


def weighing_of(message: Message) -> MicrobatchWeight:
    """How the microbatch of a `train` call counts. Raises BadFrame."""
    return MicrobatchWeight(take(message.fields, "share", float), take(message.fields, "scale", float))


def with_own_loss(scores: Mapping[str, float], own: float) -> dict[str, float]:
    """The scores that stages behind this one gave, with its own loss in them."""
    if own == 0.0:
        return dict(scores)
    return {**scores, "loss": scores.get("loss", 0.0) + own, AUXILIARY: scores.get(AUXILIARY, 0.0) + own}


def _number(attempt: OpenAttempt, message: Message) -> int:
    number = take(message.fields, "microbatch", int)
    if number < 0 or 0 < attempt.microbatches <= number:
        raise BadFrame(f"microbatch {number} of {attempt.microbatches}")
    return number


def about(error: SwarmError, uid: str) -> SwarmError:
    """Say which stage an error is about, unless a stage further behind said so already."""
    if getattr(error, "at", None) is None:
        error.at = uid
    return error
