"""One inner step over a route, as its trainer drives it: open, microbatches, prepare, commit or abort."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from distqat.config.schema import PipelineOptions
from distqat.distributed.network.call_fields import Hop, step_fields, take
from distqat.distributed.training.loss_scaler import LossScaler
from distqat.errors import StaleAttempt, SwarmError
from distqat.protocol.step_attempts import StepId
from distqat.swarm.deadline import within
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import LinkLike, Transport
from distqat.tasks.base import Batch
from distqat.topology.expert import ExpertId

logger = logging.getLogger(__name__)

T = TypeVar("T")
CONTROL_TIMEOUT = 30.0
ASK_TIMEOUT = 5.0  # for a new link to a stage that did not answer, and for its answer


@dataclass(frozen=True)
class StepResult:
    """What a committed step tells: mean loss, summed scores, samples.

    `lost` names the replicas that did not apply it, `faults` says why, of those that answered; `not_finite`
    names the stages of which a gradient was not finite, which is why it was skipped.
    """

    loss: float
    scores: dict[str, float]
    samples: int
    skipped: bool = False
    lost: tuple[str, ...] = ()
    faults: tuple[SwarmError, ...] = ()
    not_finite: tuple[str, ...] = ()
    norm: float = 0.0
    standing: tuple[Mapping[str, Any], ...] = ()  # what each stage that committed said of itself


@dataclass(frozen=True)
class CommitResult:
    """Who did not apply a commit, why as far as they said, and what the others answered."""

    lost: tuple[str, ...]
    faults: tuple[SwarmError, ...]
    standing: tuple[Mapping[str, Any], ...]


@dataclass
class StepDriver:
    """Runs steps of one trainer over whatever route it is given."""

    transport: Transport
    trainer: str
    incarnation: int
    options: PipelineOptions
    window_timeout: float  # how long a window may be waited for: other trainers' steps and outer rounds
    max_grad_norm: float | None = None
    scaler: LossScaler = field(default_factory=LossScaler)

    def id(self, step: int, attempt: int) -> StepId:
        """The name of an attempt of this life of the trainer."""
        return StepId(self.trainer, self.incarnation, step, attempt)

    async def run(
        self,
        batch: Sequence[Batch],
        hops: Sequence[Hop],
        step: int,
        attempt: int,
        *,
        consumed: Callable[[], Awaitable[None]],
        draw: str = "",
        mark: str = "",
        frozen: Sequence[str] = (),
    ) -> StepResult:
        """Train one step on `batch`, cut into its microbatches.

        `consumed` is awaited just before the first commit: from then on the samples are spent. `draw` seeds
        dropout; `mark` makes this a checkpoint step of that name. `frozen` are the UIDs of stages that take
        part and stay as they are. Raises a SwarmError whose `at` names the replica it is about; the attempt
        is then aborted on every stage.
        """
        run = _Attempt(self, batch, hops, self.id(step, attempt), train=True)
        try:
            await run.open(draw, frozen)
            scores = await run.microbatches()
            prepared = await run.prepare()
        except BaseException:
            await run.abort()
            raise
        await consumed()
        norm, factor = clipping(prepared, self.max_grad_norm, self.scaler.scale)
        skip = not math.isfinite(norm)
        marked = {"mark": mark} if mark else {}
        fields = {"skip": skip, "factor": 0.0 if skip else factor, "samples": run.samples, **marked}
        ends = await run.commit(fields)
        self.scaler.update(overflow=skip)
        loss = scores.pop("loss", math.nan)
        finite = [bool(norms.isfinite().all()) for norms in prepared]
        return StepResult(
            loss,
            scores,
            run.samples,
            skip,
            ends.lost,
            ends.faults,
            tuple(ExpertId.parse(hop.uid).stage for hop, each in zip(hops, finite, strict=True) if not each),
            norm,
            ends.standing,
        )

    async def evaluate(self, inputs: Mapping[str, Tensor], hops: Sequence[Hop]) -> Mapping[str, Tensor]:
        """The last stage's outputs in eval mode, outside any step. Raises as `run` does."""
        budget = self.options.forward_timeout * len(hops)
        link = await _about(hops[0], self.transport.link(hops[0].address))
        fields = {"route": [hop.fields() for hop in hops[1:]], "budget": budget}
        call = link.call("evaluate", Message(fields, inputs), timeout=budget, prompt=True)
        reply = await _about(hops[0], call)
        return reply.tensors

    async def calibrate(self, batch: Sequence[Batch], hops: Sequence[Hop], step: int, attempt: int) -> None:
        """Show one batch to quantizers that still calibrate. No step is taken, no sample is spent."""
        run = _Attempt(self, batch, hops, self.id(step, attempt), train=False)
        try:
            await run.open()
            await run.microbatches()
            await run.prepare()
        except BaseException:
            await run.abort()
            raise
        await run.commit({"skip": False, "factor": 1.0, "samples": 0})


def clipping(norms: Sequence[Tensor], max_norm: float | None, scale: float) -> tuple[float, float]:
    """Norm of the whole gradient, and what to multiply gradients with: unscaling and clipping in one.

    Args:
        norms: per stage the norm of every parameter's gradient, float32 [P], of gradients times `scale`.
    Computed as `torch.nn.utils.clip_grad_norm_` does, in float32 and parameter by parameter, so that a
    clipped step has the bits of an unsplit model's.
    """
    total = torch.linalg.vector_norm(torch.cat(list(norms))) / scale
    if max_norm is None:
        return float(total), 1.0 / scale
    return float(total), float(torch.clamp(max_norm / (total + 1e-6), max=1.0)) / scale


class _Attempt:
    """One attempt at one step."""

    def __init__(
        self, stepper: StepDriver, batch: Sequence[Batch], hops: Sequence[Hop], id: StepId, *, train: bool
    ) -> None:
        self.samples = sum(part.size for part in batch)
        self._stepper = stepper
        self._parts = batch
        self._hops = list(hops)
        self._id = id
        self._train = train
        self._links: list[LinkLike] = []

    async def open(self, draw: str = "", frozen: Sequence[str] = ()) -> None:
        """Take the windows in stage order, so that trainers that share replicas cannot deadlock."""
        fields = {
            **step_fields(self._id),
            "draw": draw,
            "route": [hop.fields() for hop in self._hops],
            "microbatches": len(self._parts),
            "train": self._train,
            "frozen": list(frozen),
        }
        for hop in self._hops:
            link = await _about(hop, self._stepper.transport.link(hop.address))
            self._links.append(link)
            timeout = self._stepper.window_timeout
            await _about(hop, link.call("open", Message(fields), timeout=timeout, urgent=True, prompt=True))

    async def microbatches(self) -> dict[str, float]:
        """All microbatches at once; stages take them in order. Summed scores."""
        options = self._stepper.options
        budget = (options.forward_timeout + options.backward_timeout) * len(self._hops)
        totals: dict[str, float] = {}
        for scores in await _all(self._one(n, part, budget) for n, part in enumerate(self._parts)):
            for name, value in scores.items():
                totals[name] = totals.get(name, 0.0) + float(value)
        return totals

    async def _one(self, number: int, part: Batch, budget: float) -> dict[str, float]:
        fields = {
            **step_fields(self._id),
            "microbatch": number,
            "share": part.size / self.samples,
            "scale": self._stepper.scaler.scale,
            "budget": budget,
        }
        call = self._links[0].call("train", Message(fields, part.inputs), timeout=budget, prompt=True)
        train = _about(self._hops[0], call)
        if not self._train:
            return take((await train).fields, "scores", dict)
        labels = self._links[-1].call("labels", Message(fields, part.labels), timeout=budget, prompt=True)
        reply, _ = await _all([train, _about(self._hops[-1], labels)])
        return take(reply.fields, "scores", dict)

    async def prepare(self) -> list[Tensor]:
        """The gradient norms of every stage, parameter by parameter."""
        fields = {"microbatches": len(self._parts)}
        if (
            not self._train
        ):  # in stage order: where calibration meets NaN, the first stage that has it says so
            for i in range(len(self._hops)):
                await self._control(i, "prepare", fields)
            return []
        replies = await _all(self._control(i, "prepare", fields) for i in range(len(self._hops)))
        return [reply.tensors["norms"] for reply in replies]

    async def commit(self, fields: dict[str, Any]) -> CommitResult:
        """Commit everywhere; what became of it at each stage.

        First it is decided at one stage, the first of the route that can be reached; `topology.resolution`
        says why. From there on the step stands in any case. Raises StaleAttempt, and nothing is committed
        anywhere, when that stage has aborted the attempt because it could not hear us.
        """
        try:
            dead = await self._decide(fields)
        except StaleAttempt:
            await self.abort()
            raise
        calls = (self._control(i, "commit", fields) for i in range(dead, len(self._hops)))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, SwarmError):
                raise outcome
        pairs = zip(self._hops[dead:], outcomes, strict=True)
        lost = [hop.uid for hop, outcome in pairs if isinstance(outcome, BaseException)]
        return CommitResult(
            (*(hop.uid for hop in self._hops[:dead]), *lost),
            tuple(outcome for outcome in outcomes if isinstance(outcome, SwarmError)),
            tuple(outcome.fields for outcome in outcomes if isinstance(outcome, Message)),
        )

    async def _decide(self, fields: dict[str, Any]) -> int:
        """Have the commit recorded at one stage; how many before it are dead."""
        for position in range(len(self._hops)):
            if await self._decided(position, {**fields, "unconfirmed": position > 0}):
                return position
        return len(self._hops)

    async def _decided(self, position: int, fields: dict[str, Any]) -> bool:
        """Whether the stage has recorded the commit; False: it cannot be reached, over a new link either."""
        try:
            await self._control(position, "decide", fields)
            return True
        except StaleAttempt:
            raise
        except SwarmError as error:
            logger.warning("%s: %s did not answer the commit: %s", self._id, self._hops[position].uid, error)
        hop = self._hops[position]
        try:
            self._links[position] = await within(self._stepper.transport.link(hop.address), ASK_TIMEOUT)
            known = Message(step_fields(self._id))
            link = self._links[position]
            reply = await link.call("outcome", known, timeout=ASK_TIMEOUT, urgent=True, prompt=True)
            if reply.fields.get("verdict") == "undecided":
                await self._control(position, "decide", fields)
        except StaleAttempt:
            raise
        except (SwarmError, asyncio.TimeoutError):
            return False
        if reply.fields.get("verdict") == "aborted":
            aborted = StaleAttempt(f"{hop.uid} lost touch with this trainer and aborted {self._id}")
            aborted.at = hop.uid
            raise aborted
        return reply.fields.get("verdict") != "unknown"

    async def abort(self) -> None:
        """Undo on every stage that may have begun; those that cannot be reached undo it by themselves."""
        calls = (self._control(i, "abort", {}) for i in range(len(self._links)))
        await asyncio.gather(*calls, return_exceptions=True)

    async def _control(self, position: int, method: str, fields: dict[str, Any]) -> Message:
        message = Message({**step_fields(self._id), **fields})
        link = self._links[position]
        call = link.call(method, message, timeout=CONTROL_TIMEOUT, urgent=True, prompt=True)
        return await _about(self._hops[position], call)


async def _about(hop: Hop, call: Awaitable[T]) -> T:
    try:
        return await call
    except SwarmError as error:
        error.at = error.at or hop.uid
        raise


async def _all(calls: Any) -> list[Any]:
    """Wait for all; the first failure cancels the rest at once and is raised."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
