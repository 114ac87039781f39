"""Calls over a transport: checked at both ends, answered by who serves them."""

from __future__ import annotations

import pytest
import torch
from tests.fakes.direct_calls import hop_of
from tests.fakes.memory_transport import MemoryNetwork, MemoryTransport

from distqat.errors import BadFrame
from distqat.protocol.call_schema import CLIENT
from distqat.protocol.calls.slot_calls import AskStatus, RequestSlot, StatusFigures
from distqat.protocol.calls.step_calls import Done, EvaluateBatch
from distqat.protocol.hop import PeerAddress
from distqat.swarm.call_messages import CallHandlers, ask, exchange
from distqat.swarm.incoming_call import IncomingCall
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import LinkLike


async def status(request: AskStatus, call: IncomingCall) -> StatusFigures:
    return StatusFigures({"asked by": call.peer})


async def evaluate(request: EvaluateBatch, call: IncomingCall) -> Message:
    return Message(tensors={name: tensor * request.budget for name, tensor in call.message.tensors.items()})


@pytest.fixture
async def link() -> LinkLike:
    network = MemoryNetwork()
    server, caller = MemoryTransport(network, "server"), MemoryTransport(network, "caller")
    handlers = {AskStatus: status, EvaluateBatch: evaluate}
    await server.serve(CallHandlers("the server", handlers).answer)
    return await caller.link(PeerAddress("server"))


async def test_a_request_gets_its_answer_with_and_without_tensors(link: LinkLike) -> None:
    assert await ask(link, AskStatus(), timeout=5) == StatusFigures({"asked by": "caller"})
    payload = Message(tensors={"x": torch.ones(2)})
    said, reply = await exchange(link, EvaluateBatch((), 3.0), payload, timeout=5)
    assert said == Done()
    assert reply.tensors["x"].tolist() == [3.0, 3.0]


async def test_what_nobody_serves_and_what_does_not_fit_is_refused(link: LinkLike) -> None:
    with pytest.raises(BadFrame, match="the server does not answer 'sing'"):
        await link.call("sing", timeout=5)
    with pytest.raises(BadFrame, match="the server does not answer 'beat'"):
        await link.call("beat", timeout=5)
    with pytest.raises(BadFrame, match="field 'budget' must be"):
        await link.call("evaluate", Message({"route": [], "budget": "3"}), timeout=5)


async def test_an_answer_is_checked_too() -> None:
    network = MemoryNetwork()
    server, caller = MemoryTransport(network, "server"), MemoryTransport(network, "caller")

    async def nonsense(call: IncomingCall) -> Message:
        return Message({"finished": False})

    await server.serve(nonsense)
    link = await caller.link(PeerAddress("server"))
    with pytest.raises(BadFrame, match="field 'finished' must be True"):
        await ask(link, RequestSlot(hop_of("any.0.0.0")), timeout=5)


def test_a_role_that_lacks_a_handler_does_not_start() -> None:
    with pytest.raises(RuntimeError, match="the handlers of a client do not fit the protocol: beat"):
        CallHandlers("the client", {AskStatus: status}, CLIENT)
    with pytest.raises(RuntimeError, match="evaluate"):
        CallHandlers("the client", {EvaluateBatch: evaluate}, CLIENT)
