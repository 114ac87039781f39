"""Calls straight to the handlers of a role, without a transport."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distqat.protocol.call_schema import Call
from distqat.protocol.hop import Hop, PeerAddress
from distqat.swarm.call_messages import CallHandlers, Handler
from distqat.swarm.incoming_call import IncomingCall
from distqat.swarm.tensor_frame import Message


def from_peer(peer: str) -> IncomingCall:
    """Who calls, for a handler that is given its request beside."""
    return IncomingCall(peer, "", Message())


def hop_of(uid: str) -> Hop:
    """The slot of a peer that is called as its slot is."""
    return Hop(uid, PeerAddress(uid))


async def answer_fields(
    handlers: Mapping[type[Call[Any]], Handler], call: type[Call[Any]], fields: Mapping[str, Any]
) -> Message:
    """The answer to a call of these fields, which are checked as those of a peer are."""
    return await CallHandlers("nobody", handlers).answer(IncomingCall("peer", call.method, Message(fields)))
