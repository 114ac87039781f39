"""The model that a swarm trains as one module, for a training loop of one's own. docs/custom_loop.md."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from distqat.config import Config
from distqat.distributed.network.other_runs import check_run_is_there
from distqat.distributed.network.role_peer import RolePeer
from distqat.distributed.training.custom_steps import CustomSteps, ModelCall
from distqat.distributed.training.event_loop_thread import EventLoopThread
from distqat.distributed.training.route_choice import RouteChoice
from distqat.distributed.training.step_driver import StepDriver, StepResult
from distqat.errors import ProtocolMismatch, Refused, StageUnavailable, SwarmError
from distqat.models import named_tensors
from distqat.swarm.deadline import within
from distqat.swarm.directory import DirectoryWatch, address_of
from distqat.swarm.transport import Transport
from distqat.topology.snapshot import SwarmSnapshot

logger = logging.getLogger(__name__)

T = TypeVar("T")
TIMEOUT_S = 60.0


class SwarmModel(nn.Module):
    """A pipeline of servers as an ordinary module: call it, call `backward`, then `step()`.

        logits = model(images)
        loss_function(logits, labels).backward()
        model.step()

    Gradients of several calls before one `step()` add up, as with local modules. The parameters live on
    the servers, so `parameters()` is empty and the servers' own optimizer steps them. Where stages have
    losses of their own (the balance of a mixture of experts), `model.auxiliary_loss` is their sum for the
    last call, to be added to the loss.

    When a server fails, the step is undone at all stages and SwarmError is raised; the next call begins it
    anew over other replicas. `step(closure)` does that by itself.
    """

    def __init__(self, steps: CustomSteps, loop: EventLoopThread, *, timeout: float = TIMEOUT_S) -> None:
        """`timeout`: seconds that one call, way back or commit may take; TimeoutError follows."""
        super().__init__()
        self.auxiliary_loss: Tensor = torch.zeros(())
        self._steps = steps
        self._loop = loop
        self._timeout = timeout
        self._connection: Connection | None = None  # of our own, if `connect` made it

    @classmethod
    def connect(cls, config: Config, *, pipeline: int = 0, timeout: float = TIMEOUT_S) -> SwarmModel:
        """A model over the servers of a running swarm; `config.initial_peers` says where it is.

        Waits until every stage has a server. Args: pipeline: loops with different numbers prefer different
        replicas. Raises RoleError when no peer answers, StageUnavailable naming a stage that nobody serves,
        ConfigError naming the runs that are there when this one is not, Refused when the servers have
        another DISTQAT_TOKEN, ProtocolMismatch when they speak another version of the protocol.
        """
        loop = EventLoopThread()
        try:
            connection = loop.run(Connection.open(config, pipeline, timeout), 2 * timeout)
        except BaseException:
            loop.close()
            raise
        model = cls(connection.steps, loop, timeout=timeout)
        model._connection = connection
        return model

    def close(self) -> None:
        """Leave the swarm; what was not committed is undone."""
        self._run(self._steps.close())
        if self._connection is not None:
            self._run(self._connection.close())
            self._loop.close()
            self._connection = None

    def forward(self, *inputs: Tensor) -> Tensor | Mapping[str, Tensor]:
        """A single tensor if the last stage gives one, else named tensors; connected to autograd.

        In eval mode outside any step. While quantizers still calibrate, those of a first training call are
        shown its inputs, so let that be a batch like the others. Raises ValueError naming an input that is
        not finite.
        """
        for name, tensor in named_tensors(inputs).items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ValueError(
                    f"input {name!r} of the model has values that are not finite (NaN or infinity)"
                )
        if self.training:
            # An input with a gradient, so that backward is called though none of the model's needs one.
            grad = torch.zeros((), requires_grad=True)
            names: list[str] = []
            self.auxiliary_loss, *tensors = _SwarmCall.apply(self, names, grad, *inputs)  # type: ignore[no-untyped-call]
            outputs: Mapping[str, Tensor] = dict(zip(names, tensors, strict=True))
        else:
            outputs = self._run(self._steps.evaluate(named_tensors(inputs)))
        return outputs["x"] if list(outputs) == ["x"] else outputs

    def step(self, closure: Callable[[], Tensor] | None = None) -> StepResult:
        """Commit the step on every stage: its gradient is clipped as diloco.max_grad_norm says.

        Args:
            closure: calls the model and `backward()` for one batch, and returns the loss. It is called again
                when a server fails, until the step is committed or `timeout` is over.
        Raises SwarmError when the step was undone (without a closure, or out of time), RuntimeError when a
        call of the model in training mode was not followed by `backward()`, TypeError when the closure
        returns no tensor; what the closure raises undoes the step on every stage first.
        """
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                loss = self._loss_of(closure) if closure is not None else math.nan
                return self._run(self._steps.commit(loss))
            except SwarmError:
                if closure is None or time.monotonic() > deadline:
                    raise

    def _loss_of(self, closure: Callable[[], Tensor]) -> float:
        try:
            loss = closure()
            if not isinstance(loss, Tensor):
                raise TypeError(f"the closure must return the loss as a tensor, not {type(loss).__name__}")
            return float(loss.detach())
        except BaseException:  # also an interrupt: the stages must not wait for a step that nobody ends
            self.abort()
            raise

    def abort(self) -> None:
        """Undo the calls since the last step, on every stage."""
        self._run(self._steps.abort())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return self._loop.run(work, self._timeout)
        except TimeoutError as error:
            if not self._steps.missing:
                raise
            raise TimeoutError(f"{error}: {self._steps.missing}") from None


class Connection:
    """A guest's presence in a swarm: it trains, and serves nobody."""

    def __init__(self, peer: RolePeer, watch: DirectoryWatch, steps: CustomSteps) -> None:
        self.steps = steps
        self._peer = peer
        self._watching = asyncio.ensure_future(watch.run())

    @classmethod
    async def open(cls, config: Config, pipeline: int, timeout: float) -> Connection:
        """As `SwarmModel.connect`."""
        peer = await RolePeer.start(config, port=0, port_given=False, initial_peers=config.initial_peers)
        watch = DirectoryWatch(peer.directory, config.stages)
        routes = RouteChoice(watch, pipeline)
        driver = StepDriver.of(config, peer.transport, int(time.time() * 1000))
        connection = cls(peer, watch, CustomSteps(driver, routes, watch.refresh))
        try:
            if not (await watch.refresh()).servers:
                await check_run_is_there(peer.directory)
            await _wait_for_servers(routes, timeout)
            await _check_admission(peer.transport, watch.snapshot)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def close(self) -> None:
        """Say goodbye."""
        self._watching.cancel()
        await self._peer.stop()


async def _wait_for_servers(routes: RouteChoice, timeout: float) -> None:
    try:
        await within(routes.next(asyncio.Event()), timeout)
    except asyncio.TimeoutError:
        raise StageUnavailable(f"{routes.missing}; waited for {timeout:.0f} s") from None


async def _check_admission(transport: Transport, snapshot: SwarmSnapshot) -> None:
    """Raises Refused or ProtocolMismatch when no server of a stage lets us in: another token or version.

    One that refuses alone may be a stranger's: anybody may announce a server, and steps go around it.
    """
    for stage in snapshot.stages:
        refusals: list[SwarmError] = []
        for server in snapshot.serving(stage):
            try:
                await transport.link(address_of(server))
                break
            except (Refused, ProtocolMismatch) as error:
                refusals.append(error)
            except SwarmError as error:
                logger.warning("%s cannot be reached: %s", server.expert, error)
        else:
            if refusals:
                raise refusals[0]


class _SwarmCall(torch.autograd.Function):
    """A call through the swarm as one node of the autograd graph; it writes the outputs' names into `names`.

    The first output is the sum of the stages' own losses.
    """

    @staticmethod
    def forward(
        ctx: Any, model: SwarmModel, names: list[str], anchor: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        named = named_tensors(inputs)
        needs = [name for name, tensor in named.items() if tensor.requires_grad]
        call: ModelCall = model._run(model._steps.forward(named, needs))
        ctx.model, ctx.call, ctx.names = model, call, list(named)
        ctx.mark_non_differentiable(*(t for t in call.outputs.values() if not t.is_floating_point()))
        names.extend(call.outputs)
        return torch.tensor(call.auxiliary), *call.outputs.values()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        model, call = ctx.model, ctx.call
        own, *of_outputs = gradients
        named = {
            name: gradient
            for (name, output), gradient in zip(call.outputs.items(), of_outputs, strict=True)
            if output.is_floating_point()
        }
        answer = model._run(model._steps.backward(call, named, float(own)))
        return None, None, None, *(answer.get(name) for name in ctx.names)
