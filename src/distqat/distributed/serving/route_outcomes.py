"""Asking the stages of a route what became of an attempt there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from distqat.distributed.network.call_fields import Hop, step_fields, take
from distqat.errors import SwarmError
from distqat.protocol.step_attempts import StepId, Verdict
from distqat.swarm.deadline import within
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import Transport

ASK_TIMEOUT = 5.0  # seconds

Outcome = tuple[Verdict, dict[str, Any]]
"""A verdict, and with `committed` what the commit was asked with."""


async def ask_route(transport: Transport, route: Sequence[Hop], id: StepId, own_uid: str) -> list[Outcome]:
    """What each stage of `route` says, in its order; `unknown` for ourselves and for who does not answer."""

    async def ask(hop: Hop) -> Outcome:
        if hop.uid == own_uid:
            return "unknown", {}
        with contextlib.suppress(SwarmError, asyncio.TimeoutError):
            link = await within(transport.link(hop.address, prompt=True), ASK_TIMEOUT)
            known = Message(step_fields(id))
            reply = await link.call("outcome", known, timeout=ASK_TIMEOUT, urgent=True, prompt=True)
            verdict = reply.fields.get("verdict")
            if verdict in ("committed", "aborted", "undecided"):
                return verdict, take(reply.fields, "commit", dict)
        return "unknown", {}

    return await asyncio.gather(*map(ask, route))
