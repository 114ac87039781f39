"""The model as one module: over the swarm (`SwarmModel`) or in this process (`SwarmBaselineModel`)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import threading
import time
from collections.abc import Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from distqat.config import Config
from distqat.distributed.assembly.stage_factory import build_module
from distqat.distributed.assembly.tied_weights import tie
from distqat.distributed.network.call_fields import Hop, step_fields, take
from distqat.distributed.network.other_runs import check_run_is_there
from distqat.distributed.network.role_peer import RolePeer
from distqat.distributed.training.gradient_clipping import norm_and_factor
from distqat.models import named_tensors, outputs_of_each
from distqat.models.auxiliary_loss import AUXILIARY, take_auxiliary_loss
from distqat.protocol.step_attempts import StepId
from distqat.quant import (
    activate,
    calibrated,
    check_observed,
    look_again,
    observe_data,
    quant_schedule,
    quantizers,
    reasons,
)
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import LinkLike, Transport
from distqat.topology.routing import Router

T = TypeVar("T")


class SwarmBaselineModel(nn.Module):
    """All stages of the configuration in one process, cut and initialised as servers would have them."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.stages = nn.ModuleDict({stage: build_module(config, stage) for stage in config.stages})
        tie(self.stages, config)
        self._quant = config.quant
        self.auxiliary_loss: Tensor | None = None

    def forward(self, *inputs: Tensor) -> Tensor | Mapping[str, Tensor]:
        """Through all stages; a single tensor if the last stage gives one, else named tensors."""
        named = self.outputs(*inputs)
        return named["x"] if list(named) == ["x"] else named

    def outputs(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The last stage's outputs by name; the stages' own losses together are in `auxiliary_loss`."""
        stages, named, losses = list(self.stages.values()), named_tensors(inputs), []
        for stage, outputs in zip(stages, outputs_of_each(stages, named), strict=True):
            named = outputs
            own = take_auxiliary_loss(stage)
            if own is not None and any(p.requires_grad for p in stage.parameters()):  # else it is frozen
                losses.append(own)
        self.auxiliary_loss = torch.stack(losses).sum() if losses else None
        return named

    @property
    def calibrating(self) -> bool:
        """Whether quantizers still have to see real data before the first quantized step."""
        return any(quantizer.state == "calibrating" for _, quantizer in quantizers(self))

    def follow_schedule(
        self, steps: Sequence[int], total_steps: int, measuring: Collection[int] = ()
    ) -> quant_schedule.ScheduleMoment:
        """As servers do before each step, with the steps of each stage: near the end quantizers stand still.

        `measuring`: positions of the stages whose weights stand, for BatchNorm's statistics. Only here may
        stages train in float before they calibrate; their quantizers look away meanwhile. The moment of the
        stage that is furthest.
        """
        moments = []
        for position, (stage, step) in enumerate(zip(self.stages.values(), steps, strict=True)):
            now = quant_schedule.moment(
                step, total_steps, self._quant.warmup, measuring=position in measuring
            )
            if now.steps_frozen:
                look_again(stage, last=True)
            quant_schedule.apply(stage, now)
            observe_data(stage, on=step >= self._quant.warmup.float_steps)
            moments.append(now)
        return max(moments, key=lambda now: quant_schedule.PHASES.index(now.phase))

    def activate_if_calibrated(self, shown: int) -> list[str]:
        """As servers do after each calibration batch: a stage that has seen enough becomes active.

        `shown`: forward passes that were for calibration. Sentences about quantizers that wait for values.
        Raises QuantError when what came cannot be quantized.
        """
        said: list[str] = []
        for stage in self.stages.values():
            calibrating = any(q.state == "calibrating" for _, q in quantizers(stage))
            if calibrating and calibrated(stage, self._quant, shown):
                check_observed(stage)
                said += reasons(activate(stage, wait=True))
        return said


class EventLoopThread:
    """An event loop beside synchronous code, such as a custom training loop."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="swarm", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout: float) -> T:
        """Run a coroutine there and wait for it. Raises TimeoutError after `timeout` seconds."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise TimeoutError(f"the swarm did not answer within {timeout:.1f} s") from None

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._loop.close()


class SwarmModel(nn.Module):
    """A pipeline of servers as an ordinary module: call it, call `backward`, then `step()`.

        logits = model(images)
        loss_function(logits, labels).backward()
        model.step()

    Gradients of several calls before one `step()` add up, as with local modules. The parameters live on
    the servers, so `parameters()` is empty and the servers' own optimizer steps them. Where stages have
    losses of their own (the balance of a mixture of experts), `model.auxiliary_loss` is their sum for the
    last call, to be added to the loss.
    """

    def __init__(
        self, transport: Transport, hops: Sequence[Hop], loop: EventLoopThread, *, timeout: float = 60.0
    ) -> None:
        super().__init__()
        self._transport = transport
        self._hops = list(hops)
        self._loop = loop
        self._timeout = timeout
        self._incarnation = int(time.time() * 1000)
        self._step = 1
        self._calls = 0
        self._samples = 0
        self._links: list[LinkLike] = []
        self._peer: RolePeer | None = None  # of our own, if `connect` made it
        self.auxiliary_loss: Tensor = torch.zeros(())

    @classmethod
    def connect(cls, config: Config, *, pipeline: int = 0, timeout: float = 60.0) -> SwarmModel:
        """A model over the servers of a running swarm; `config.initial_peers` says where it is.

        Raises RoleError when no peer answers, StageUnavailable naming a stage that nobody serves, ConfigError
        naming the runs that are there when this one is not.
        """
        loop = EventLoopThread()
        try:
            peer, hops = loop.run(_find(config, pipeline), timeout)
        except BaseException:
            loop.close()
            raise
        model = cls(peer.transport, hops, loop, timeout=timeout)
        model._peer = peer
        return model

    def close(self) -> None:
        """Leave the swarm; the servers undo what was not committed."""
        if self._peer is not None:
            self._loop.run(self._peer.stop(), self._timeout)
            self._loop.close()
            self._peer = None

    def forward(self, *inputs: Tensor) -> Tensor:
        """Outputs of the last stage (a single tensor), connected to autograd; in eval mode without a step."""
        if not self.training:
            return self._loop.run(self._evaluate(inputs), self._timeout)
        grad = torch.zeros((), requires_grad=True)  # so that backward is called though no input needs it
        output: Tensor
        output, self.auxiliary_loss = _SwarmCall.apply(self, grad, *inputs)  # type: ignore[no-untyped-call]
        return output

    def step(self, max_grad_norm: float | None = None) -> dict[str, float]:
        """Commit the step on every stage; the gradient norm over all of them."""
        return self._loop.run(self._commit(max_grad_norm), self._timeout)

    def abort(self) -> None:
        """Forget the calls since the last step, on every stage."""
        self._loop.run(self._abort(), self._timeout)

    # what happens on the event loop

    @property
    def _fields(self) -> dict[str, Any]:
        return step_fields(StepId(self._transport.peer, self._incarnation, self._step, 0))

    async def _open(self) -> None:
        fields = {**self._fields, "route": [hop.fields() for hop in self._hops], "train": True}
        for hop in self._hops:
            link = await self._transport.link(hop.address)
            await link.call(
                "open", Message({**fields, "microbatches": 0}), timeout=self._timeout, urgent=True
            )
            self._links.append(link)

    async def run_forward(self, inputs: Sequence[Tensor]) -> tuple[int, dict[str, Tensor], float]:
        """One call through all stages: its number, for the way back, outputs, and the stages' own losses."""
        if not self._links:
            await self._open()
        number, self._calls = self._calls, self._calls + 1
        self._samples += int(inputs[0].shape[0])
        fields = {**self._fields, "microbatch": number, "budget": self._timeout}
        needs = frozenset(n for n, t in named_tensors(tuple(inputs)).items() if t.requires_grad)
        message = Message(fields, named_tensors(tuple(inputs)), needs)
        reply = await self._links[0].call("forward", message, timeout=self._timeout)
        return number, dict(reply.tensors), take(reply.fields, AUXILIARY, float)

    async def run_backward(self, number: int, gradient: Tensor, weight: float) -> dict[str, Tensor]:
        """Gradients of the inputs of call `number`; `weight` is the gradient of the stages' own losses."""
        fields = {**self._fields, "microbatch": number, "budget": self._timeout, AUXILIARY: weight}
        reply = await self._links[0].call("backward", Message(fields, {"x": gradient}), timeout=self._timeout)
        return dict(reply.tensors)

    async def _evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        link = await self._transport.link(self._hops[0].address)
        route = [hop.fields() for hop in self._hops[1:]]
        fields = {"route": route, "budget": self._timeout}
        reply = await link.call(
            "evaluate", Message(fields, named_tensors(tuple(inputs))), timeout=self._timeout
        )
        return reply.tensors["x"]

    async def _commit(self, max_grad_norm: float | None) -> dict[str, float]:
        message = Message({**self._fields, "microbatches": self._calls})
        prepared = [await self._control(link, "prepare", message) for link in self._links]
        norm, factor = norm_and_factor([reply.tensors["norms"] for reply in prepared], max_grad_norm, 1.0)
        skip = not math.isfinite(norm)
        fields = {**self._fields, "skip": skip, "factor": factor, "samples": self._samples}
        for link in self._links:
            await self._control(link, "commit", Message(fields))
        self._next()
        return {"norm": norm, "skipped": float(skip)}

    async def _abort(self) -> None:
        for link in self._links:
            await self._control(link, "abort", Message(self._fields))
        self._next()

    async def _control(self, link: LinkLike, method: str, message: Message) -> Message:
        return await link.call(method, message, timeout=self._timeout, urgent=True)

    def _next(self) -> None:
        self._step, self._calls, self._samples = self._step + 1, 0, 0
        self._links = []


async def _find(config: Config, pipeline: int) -> tuple[RolePeer, list[Hop]]:
    peer = await RolePeer.start(config, port=0, port_given=False, initial_peers=config.initial_peers)
    try:
        snapshot = await peer.directory.snapshot()
        if not snapshot.servers:
            await check_run_is_there(peer.directory)
        route = Router().choose(snapshot, pipeline, time.monotonic())
    except BaseException:
        await peer.stop()
        raise
    return peer, [Hop.of(server) for server in route.servers]


class _SwarmCall(torch.autograd.Function):
    """A call through the swarm as one node of the autograd graph."""

    @staticmethod
    def forward(ctx: Any, model: SwarmModel, anchor: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        number, outputs, own = model._loop.run(model.run_forward(inputs), model._timeout)
        ctx.model, ctx.number, ctx.names = model, number, list(named_tensors(tuple(inputs)))
        return outputs["x"], torch.tensor(own)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        model: SwarmModel = ctx.model
        of_outputs, weight = gradients[0].contiguous(), float(gradients[1])
        answer = model._loop.run(model.run_backward(ctx.number, of_outputs, weight), model._timeout)
        return None, None, *(answer.get(name) for name in ctx.names)
