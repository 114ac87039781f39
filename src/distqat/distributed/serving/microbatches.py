"""One microbatch at one stage: the nested call of a training step, and the two halves of autograd's road."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from distqat.distributed.serving.activation_encoder import StageOutputs
from distqat.distributed.serving.attempt_state import OpenAttempt
from distqat.distributed.serving.attempt_work import MicrobatchWeight
from distqat.distributed.serving.compute_thread import ComputeThread, Priority
from distqat.distributed.serving.replica import StageReplica
from distqat.errors import BadFrame, SwarmError
from distqat.failpoints import failpoint
from distqat.models.auxiliary_loss import AUXILIARY
from distqat.protocol.call_schema import fields_of
from distqat.protocol.calls.step_calls import (
    BackwardMicrobatch,
    EvaluateBatch,
    ForwardMicrobatch,
    MicrobatchScores,
    OwnLosses,
    SendLabels,
    TrainMicrobatch,
)
from distqat.swarm.call_messages import exchange
from distqat.swarm.incoming_call import IncomingCall
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import Transport

T = TypeVar("T")

Work = TrainMicrobatch | ForwardMicrobatch | BackwardMicrobatch
W = TypeVar("W", TrainMicrobatch, ForwardMicrobatch, BackwardMicrobatch)


class Microbatches:
    """The work of one replica on microbatches; who may ask for it the step lock says."""

    def __init__(self, replica: StageReplica, compute: ComputeThread, transport: Transport) -> None:
        self._replica = replica
        self._compute = compute
        self._transport = transport

    async def run(self, attempt: OpenAttempt, request: Work | SendLabels, message: Message) -> Message:
        """Answer one of the four calls; one that is repeated gets the first answer. Raises BadFrame."""
        if 0 < attempt.microbatches <= request.microbatch:
            raise BadFrame(f"microbatch {request.microbatch} of {attempt.microbatches}")
        if isinstance(request, SendLabels):
            return self._labels(attempt, request, message)
        key = request.method, request.microbatch
        if key in attempt.answers:
            return await asyncio.shield(attempt.answers[key])
        attempt.answers[key] = asyncio.ensure_future(self._first(attempt, request, message))
        return await attempt.answers[key]

    async def _first(self, attempt: OpenAttempt, request: Work, message: Message) -> Message:
        if isinstance(request, BackwardMicrobatch):
            return await self._backward(attempt, request, message)
        request = replace(request, stands=self._stands(attempt, request.stands))
        if isinstance(request, ForwardMicrobatch):
            return await self._forward(attempt, request, message)
        if not attempt.train:
            return await self._observe(attempt, request, message)
        if attempt.last:
            return await self._train_last(attempt, request, message)
        return await self._train_through(attempt, request, message)

    def _stands(self, attempt: OpenAttempt, before: bool) -> bool:
        """Whether weights stand up to here, ours included; `before`: those of the stages before.

        Rounds end at each stage by themselves. Statistics of what a stage gives that still trains are none.
        """
        stands = self._replica.measuring and (attempt.position == 0 or before)
        if self._replica.measuring and not stands:
            self._replica.moved_before()
        return stands

    def _labels(self, attempt: OpenAttempt, request: SendLabels, message: Message) -> Message:
        """Labels of a microbatch, from the trainer straight to the last stage."""
        waiting = attempt.labels_of(request.microbatch)
        if not waiting.done():
            waiting.set_result(dict(message.tensors))
        return Message()

    async def _train_last(self, attempt: OpenAttempt, request: TrainMicrobatch, message: Message) -> Message:
        number, weighing = request.microbatch, MicrobatchWeight(request.share, request.scale)
        labels: Mapping[str, Tensor] = await attempt.labels_of(number)
        gradients, scores = await self._in_turn(
            attempt,
            number,
            lambda: self._replica.loss(number, message.tensors, message.needs_grad, labels, weighing),
        )
        failpoint("stage.backward.before_answer")
        return Message(fields_of(MicrobatchScores(scores)), gradients)

    async def _train_through(
        self, attempt: OpenAttempt, request: TrainMicrobatch, message: Message
    ) -> Message:
        number, weighing = request.microbatch, MicrobatchWeight(request.share, request.scale)
        await attempt.forward_turns.mine(number)
        async with attempt.hold:
            failpoint("stage.forward")
            job = self._compute.submit(
                Priority.FORWARD,
                "forward",
                lambda: self._replica.forward(number, message.tensors, message.needs_grad),
            )
            attempt.forward_turns.through(number)
            reply = await self._call_next(attempt, request, (await job).message({}))
            behind = request.answer(reply.fields)
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
        return Message(fields_of(MicrobatchScores(with_own_loss(behind.scores, own))), gradients)

    async def _observe(self, attempt: OpenAttempt, request: TrainMicrobatch, message: Message) -> Message:
        number = request.microbatch
        outputs = await self._in_turn(attempt, number, lambda: self._replica.observe(number, message.tensors))
        if attempt.last:
            return Message(fields_of(MicrobatchScores({})))
        return await self._call_next(attempt, request, outputs.message({}))

    async def _in_turn(self, attempt: OpenAttempt, number: int, job: Callable[[], T]) -> T:
        """Run a forward job once those of all lower microbatches are queued."""
        await attempt.forward_turns.mine(number)
        running = self._compute.submit(Priority.FORWARD, "forward", job)
        attempt.forward_turns.through(number)
        return await running

    async def _call_next(self, attempt: OpenAttempt, request: W, payload: Message) -> Message:
        """The next stage's answer, which is checked."""
        assert attempt.next_link is not None
        assert attempt.following is not None
        behind = len(attempt.route) - attempt.position
        budget = request.budget * (behind - 1) / behind
        request = replace(request, budget=budget)
        try:
            return (await exchange(attempt.next_link, request, payload, timeout=budget, prompt=True))[1]
        except SwarmError as error:
            raise about(error, attempt.following.uid) from error

    async def _forward(self, attempt: OpenAttempt, request: ForwardMicrobatch, message: Message) -> Message:
        """Forward through this stage and those behind it; the graph stays until `backward`."""
        number = request.microbatch

        def forward() -> tuple[StageOutputs, float]:
            outputs = self._replica.forward(number, message.tensors, message.needs_grad)
            return outputs, self._replica.auxiliary(number)

        outputs, own = await self._in_turn(attempt, number, forward)
        if attempt.last:
            return Message(fields_of(OwnLosses(own)), outputs.tensors)
        reply = await self._call_next(attempt, request, outputs.message({}))
        total = own + request.answer(reply.fields).auxiliary_loss
        return replace(reply, fields=fields_of(OwnLosses(total)))

    async def _backward(self, attempt: OpenAttempt, request: BackwardMicrobatch, message: Message) -> Message:
        """Gradients of the last stage's outputs to gradients of this stage's inputs.

        The request also says how the stages' own losses count in what the caller made of the outputs.
        """
        number, weight = request.microbatch, MicrobatchWeight(scale=request.auxiliary_loss)
        gradients: Mapping[str, Tensor] = message.tensors
        if not attempt.last:
            gradients = (await self._call_next(attempt, request, message)).tensors
        if attempt.microbatches:  # known: gradients add up in the order of the microbatches, as in `train`
            await attempt.backward_turns.mine(number)
        job = self._compute.submit(
            Priority.BACKWARD, "backward", lambda: self._replica.backward(number, gradients, weight)
        )
        attempt.backward_turns.through(number)
        return Message(tensors=(await job)[0])

    async def evaluate(self, request: EvaluateBatch, call: IncomingCall) -> Message:
        """Forward in eval mode through this stage and those behind it, outside any step."""
        tensors = dict(call.message.tensors)
        outputs = await self._compute.submit(
            Priority.FORWARD, "evaluate", lambda: self._replica.evaluate(tensors)
        )
        if not request.route:
            return Message(tensors=outputs.tensors)
        following, *behind = request.route
        onward = replace(request, route=tuple(behind))
        try:
            link = await self._transport.link(following.address)
            payload = outputs.message({})
            return (await exchange(link, onward, payload, timeout=request.budget, prompt=True))[1]
        except SwarmError as error:
            raise about(error, following.uid) from error


def with_own_loss(scores: Mapping[str, float], own: float) -> dict[str, float]:
    """The scores that stages behind this one gave, with its own loss in them."""
    if own == 0.0:
        return dict(scores)
    return {**scores, "loss": scores.get("loss", 0.0) + own, AUXILIARY: scores.get(AUXILIARY, 0.0) + own}


def about(error: SwarmError, uid: str) -> SwarmError:
    """Say which stage an error is about, unless a stage further behind said so already."""
    if getattr(error, "at", None) is None:
        error.at = uid
    return error
