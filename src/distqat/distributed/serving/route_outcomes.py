"""Asking the stages of a route what became of an attempt there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from distqat.errors import SwarmError
from distqat.protocol.calls.step_calls import AskOutcome, CommitTerms
from distqat.protocol.hop import Hop
from distqat.protocol.step_attempts import StepId, Verdict
from distqat.swarm.call_messages import ask
from distqat.swarm.deadline import within
from distqat.swarm.transport import Transport

ASK_TIMEOUT = 5.0  # seconds

Outcome = tuple[Verdict, CommitTerms | None]
"""A verdict, and with `committed` the terms of the commit."""
UNKNOWN: Outcome = "unknown", None


async def ask_route(transport: Transport, route: Sequence[Hop], id: StepId, own_uid: str) -> list[Outcome]:
    """What each stage of `route` says, in its order; `unknown` for ourselves and for who does not answer."""

    async def ask_one(hop: Hop) -> Outcome:
        if hop.uid == own_uid:
            return UNKNOWN
        with contextlib.suppress(SwarmError, asyncio.TimeoutError):
            link = await within(transport.link(hop.address, prompt=True), ASK_TIMEOUT)
            outcome = await ask(link, AskOutcome(id), timeout=ASK_TIMEOUT, prompt=True)
            return outcome.verdict, outcome.commit
        return UNKNOWN

    return await asyncio.gather(*map(ask_one, route))
