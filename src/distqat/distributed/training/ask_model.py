"""Asking the model that a swarm trains, outside any step."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from torch import Tensor

from distqat.distributed.training.batch_source import StoppedWaiting
from distqat.distributed.training.route_choice import RouteChoice
from distqat.distributed.training.step_driver import StepDriver
from distqat.errors import SwarmError
from distqat.protocol.hop import Hop

logger = logging.getLogger(__name__)


async def ask_model(
    driver: StepDriver, routes: RouteChoice, inputs: Mapping[str, Tensor], stop: asyncio.Event
) -> Mapping[str, Tensor]:
    """The last stage's outputs in eval mode, over as many routes as it takes. Raises StoppedWaiting."""
    attempt = 0
    while (route := await routes.next(stop)) is not None:
        try:
            return await driver.evaluate(inputs, [Hop.of(server) for server in route.servers])
        except SwarmError as error:
            attempt += 1
            logger.warning("the model is asked again (attempt %d): %s", attempt, error)
            await routes.failed(error, route, attempt)
    raise StoppedWaiting
