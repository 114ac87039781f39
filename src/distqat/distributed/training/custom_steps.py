"""Steps of a training loop of one's own: calls of the model in any number, their way back, and a commit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from distqat.distributed.training.ask_model import ask_model
from distqat.distributed.training.batch_source import StoppedWaiting
from distqat.distributed.training.loss_scaler import LossScaler, wants_scaling
from distqat.distributed.training.route_choice import RouteChoice
from distqat.distributed.training.route_step import RouteStep
from distqat.distributed.training.step_driver import NO_SETTINGS, StepDriver, StepResult, aborted_on_failure
from distqat.distributed.training.step_failures import StepFailures
from distqat.errors import StaleAttempt, SwarmError
from distqat.protocol.hop import Hop
from distqat.tasks.base import Batch
from distqat.topology.routing import Route

logger = logging.getLogger(__name__)


@dataclass
class StepInHand:
    """An attempt that holds the step lock of every stage of its route."""

    running: RouteStep
    route: Route
    began: float
    calls: int = 0
    returned: int = 0  # of them, those whose gradient has come
    samples: int = 0


@dataclass(frozen=True)
class ModelCall:
    """One call through all stages: the step that it belongs to, and what the last stage gave."""

    step: StepInHand
    number: int
    outputs: dict[str, Tensor]
    auxiliary: float  # the sum of the stages' own losses


class CustomSteps:
    """Drives them over a swarm, on its event loop; at most one step is open at a time.

    Whatever fails undoes the open step at every stage, and the next call begins it anew over another route.
    """

    def __init__(
        self, driver: StepDriver, routes: RouteChoice, refresh: Callable[[], Coroutine[Any, Any, Any]]
    ) -> None:
        """`refresh` looks into the directory, after something changed that servers announce there."""
        self._driver = driver
        self._routes = routes
        self._refresh = refresh
        self._failures = StepFailures()
        self._fp16 = LossScaler.for_fp16()
        self._stop = asyncio.Event()
        self._step, self._attempt = 1, 0
        self._opened: StepInHand | None = None

    @property
    def missing(self) -> str:
        """Which stages nobody serves, as far as a call waits for that."""
        return self._routes.missing

    async def forward(self, inputs: Mapping[str, Tensor], needs_grad: Collection[str]) -> ModelCall:
        """Through all stages, which keep what `backward` needs; opens a step if none is.

        The first call of a step is repeated over other routes until it succeeds. When a later one fails the
        step is undone: raises SwarmError. Raises RunFailed when it fails in the same way again and again.
        """
        while True:
            opened = self._opened = self._opened or await self._begin(inputs)
            number = opened.calls
            try:
                async with self._undone_on_failure(opened):
                    opened.calls += 1
                    outputs, auxiliary = await opened.running.forward(number, inputs, needs_grad)
                opened.samples += _samples(inputs)
                return ModelCall(opened, number, outputs, auxiliary)
            except SwarmError:
                if number:
                    raise

    async def backward(
        self, call: ModelCall, gradients: Mapping[str, Tensor], auxiliary: float
    ) -> dict[str, Tensor]:
        """Gradients of a call's outputs, and of its auxiliary loss, to those of its inputs.

        Raises StaleAttempt when the call's step is over, SwarmError when it had to be undone.
        """
        opened, scale = call.step, self._driver.scaler.scale
        if opened is not self._opened:
            raise StaleAttempt(f"{opened.running.id} is over; call the model again")
        sent = {name: gradient.contiguous() * scale for name, gradient in gradients.items()}
        async with self._undone_on_failure(opened):
            found = await opened.running.backward(call.number, sent, auxiliary * scale)
        opened.returned += 1
        return {name: gradient / scale for name, gradient in found.items()}

    async def commit(self, loss: float) -> StepResult:
        """Step every stage on the gradients of all calls since the last commit.

        Raises RuntimeError when there are none, or one whose gradient never came; SwarmError when the step
        had to be undone.
        """
        opened = self._opened
        if opened is None:
            raise RuntimeError("there is no step to commit: call the model in training mode, then backward()")
        if opened.returned != opened.calls:
            await self.abort()
            raise RuntimeError(
                f"{opened.calls - opened.returned} of {opened.calls} calls of the model were not followed by "
                "backward(); the step is undone. Call model.eval() for what is not trained on"
            )
        async with self._undone_on_failure(opened):
            norms = await opened.running.prepare(opened.calls)
            result = await self._driver.commit(opened.running, norms, {"loss": loss}, opened.samples)
        self._opened, step = None, self._step
        self._step, self._attempt = step + 1, 0
        self._failures.committed(result, step)
        elsewhere = self._failures.look_elsewhere
        self._routes.taken(opened.route, result, time.monotonic() - opened.began, elsewhere=elsewhere)
        return result

    async def abort(self) -> None:
        """Undo the open step at every stage, if there is one."""
        opened, self._opened = self._opened, None
        if opened is not None:
            self._attempt += 1
            await opened.running.abort()

    async def evaluate(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The last stage's outputs in eval mode, outside any step."""
        return await ask_model(self._driver, self._routes, inputs, self._stop)

    async def close(self) -> None:
        """Undo what is open, and wait for nobody any more."""
        self._stop.set()
        await self.abort()

    async def _begin(self, inputs: Mapping[str, Tensor]) -> StepInHand:
        """Open a step over whatever route there is; quantizers that calibrate are shown `inputs` first."""
        while (route := await self._routes.next(self._stop)) is not None:
            began, hops = time.monotonic(), [Hop.of(server) for server in route.servers]
            try:
                if any(server.state == "calibrating" for server in route.servers):
                    batch = [Batch(dict(inputs), {}, _samples(inputs))]
                    await self._driver.calibrate(batch, hops, self._step, self._attempt)
                    await self._refresh()
                    self._step, self._attempt = self._step + 1, 0  # the calibration has used up its number
                    continue
                self._driver.scaler = self._fp16 if wants_scaling(route.servers) else LossScaler()
                running = self._driver.begin(hops, self._driver.id(self._step, self._attempt))
                async with aborted_on_failure(running):
                    await self._driver.open(running, NO_SETTINGS, 0)
                return StepInHand(running, route, began)
            except SwarmError as error:
                await self._failed(error, route)
        raise StoppedWaiting

    @contextlib.asynccontextmanager
    async def _undone_on_failure(self, opened: StepInHand) -> AsyncIterator[None]:
        try:
            async with aborted_on_failure(opened.running):
                yield
        except SwarmError as error:
            self._opened = None
            await self._failed(error, opened.route)
            raise
        except BaseException:
            self._opened, self._attempt = None, self._attempt + 1
            raise

    async def _failed(self, error: SwarmError, route: Route) -> None:
        self._attempt += 1
        logger.warning("step %d is undone (attempt %d): %s", self._step, self._attempt, error)
        self._failures.failed(error, self._step)
        await self._routes.failed(error, route, self._attempt)


def _samples(inputs: Mapping[str, Tensor]) -> int:
    return int(next(iter(inputs.values())).shape[0])
