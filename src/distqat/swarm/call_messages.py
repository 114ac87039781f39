"""Calls of the protocol as messages of the transport: asking a peer, and answering it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from distqat.errors import BadFrame
from distqat.protocol.call_schema import CALLS, Call, fields_of, parse
from distqat.swarm.incoming_call import IncomingCall
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import LinkLike

A = TypeVar("A")
NO_TENSORS = Message()
Handler = Callable[[Any, IncomingCall], Awaitable[Any]]
"""Answers a request with one of its answers, or with a message where tensors belong to it."""


async def ask(
    link: LinkLike, request: Call[A], *, timeout: float, urgent: bool = True, prompt: bool = False
) -> A:
    """The answer of a peer, without tensors. Raises as `LinkLike.call` does, BadFrame included."""
    return (await exchange(link, request, timeout=timeout, urgent=urgent, prompt=prompt))[0]


async def exchange(
    link: LinkLike,
    request: Call[A],
    payload: Message = NO_TENSORS,
    *,
    timeout: float,
    urgent: bool = False,
    prompt: bool = False,
) -> tuple[A, Message]:
    """As `ask`, with the tensors of `payload` beside the request; the answer, and its tensors."""
    message = replace(payload, fields=fields_of(request))
    reply = await link.call(request.method, message, timeout=timeout, urgent=urgent, prompt=prompt)
    return request.answer(reply.fields), reply


class CallHandlers:
    """Who answers which call at a role."""

    def __init__(self, name: str, handlers: Mapping[type[Call[Any]], Handler], role: str = "") -> None:
        """`role`: RuntimeError unless `handlers` are for all calls that this role serves, and no other."""
        served = {call for call in CALLS.values() if role in call.served_by}
        if role and served != handlers.keys():
            odd = ", ".join(sorted(call.method for call in served ^ handlers.keys()))
            raise RuntimeError(f"the handlers of a {role} do not fit the protocol: {odd}")
        self._name = name
        self._handlers = dict(handlers)

    async def answer(self, call: IncomingCall) -> Message:
        """Check a request, have it answered. Raises BadFrame for what this role does not serve."""
        kind = CALLS.get(call.method)
        handler = self._handlers.get(kind) if kind is not None else None
        if kind is None or handler is None:
            raise BadFrame(f"{self._name} does not answer {call.method!r}")
        answer = await handler(parse(kind, call.message.fields), call)
        return answer if isinstance(answer, Message) else Message(fields_of(answer))
