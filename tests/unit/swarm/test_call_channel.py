"""Calls over one stream: answers, deadlines, cancellation, ends, and a peer that means harm."""

from __future__ import annotations

import asyncio
import logging

import pytest
import torch
from tests.unit.swarm.pipes import channels, ends

from distqat.errors import BadFrame, Busy, CallTimeout, PeerGone, Refused, SwarmError
from distqat.swarm import tensor_frame
from distqat.swarm.call_channel import MAX_CALLS_IN_FLIGHT, ByteCount, CallChannel, IncomingCall
from distqat.swarm.tensor_frame import Message


async def echo(call: IncomingCall) -> Message:
    return call.message


async def never(call: IncomingCall) -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def settle() -> None:
    """Let everything happen that needs no time."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
async def test_a_call_comes_back_however_the_stream_is_cut(chunk: int) -> None:
    caller, server = channels(echo, chunk=chunk)
    sent = torch.arange(50.0)
    reply = await caller.call("echo", Message({"n": 1}, {"x": sent, "none": torch.empty(0, 3)}), timeout=5)
    assert torch.equal(reply.tensors["x"], sent)
    assert reply.tensors["none"].shape == (0, 3)
    assert caller.traffic.bytes_out == server.traffic.bytes_in > sent.nbytes
    caller.close()
    await server.lost
    assert server.closed.result() == "it closed the stream"


async def test_an_end_without_goodbye_is_a_death_and_ends_all_calls() -> None:
    caller, server = channels(never)
    calls = [asyncio.ensure_future(caller.call("x", Message(), timeout=5)) for _ in range(3)]
    await settle()
    server._transport.abort()
    for call in calls:
        with pytest.raises(PeerGone, match="without a goodbye"):
            await call
    with pytest.raises(PeerGone):
        await caller.call("x", Message(), timeout=5)


async def test_the_death_of_a_caller_cancels_what_answers_it() -> None:
    cancelled = asyncio.Event()

    async def answer(call: IncomingCall) -> Message:
        try:
            return await never(call)
        finally:
            cancelled.set()

    caller, _ = channels(answer)
    call = asyncio.ensure_future(caller.call("x", Message(), timeout=5))
    await settle()
    caller.abort("gone")
    await cancelled.wait()
    with pytest.raises(PeerGone):
        await call


async def test_a_deadline_also_bounds_the_wait_for_room() -> None:
    caller, server = channels(never)
    server._transport.pause_reading()
    caller._transport.set_write_buffer_limits(high=10)
    first = asyncio.ensure_future(caller.call("x", Message({"filler": "x" * 100}), timeout=30))
    await settle()
    assert caller._room is not None
    with pytest.raises(CallTimeout, match="did not answer 'y'"):
        await caller.call("y", Message(), timeout=0.01)
    first.cancel()
    caller.close()


async def test_a_cancellation_that_meets_the_answer_is_not_lost() -> None:
    """`asyncio.wait_for` of Python 3.10 and 3.11 would return the answer here."""
    caller, _ = channels(never)
    call = asyncio.ensure_future(caller.call("x", Message(), timeout=5))
    await settle()
    (waiting,) = caller._waiting.values()
    waiting.set_result(Message())
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not caller._waiting


async def test_a_late_answer_is_dropped() -> None:
    release = asyncio.Event()

    async def slow(call: IncomingCall) -> Message:
        await release.wait()
        return Message()

    caller, _ = channels(slow)
    with pytest.raises(CallTimeout):
        await caller.call("x", Message(), timeout=0.01)
    release.set()
    await settle()
    assert (await caller.call("x", Message(), timeout=5)).fields == {}


async def test_a_reply_that_cannot_travel_is_an_error_at_once() -> None:
    async def answer(call: IncomingCall) -> Message:
        if call.method == "dtype":
            return Message(tensors={"x": torch.zeros(2, dtype=torch.complex64)})
        return Message({"x": object()} if call.method == "object" else {"x": "y" * 100_000})

    caller, _ = channels(answer)
    with pytest.raises(BadFrame, match="do not travel"):
        await caller.call("dtype", Message(), timeout=5)
    with pytest.raises(BadFrame, match="header"):
        await caller.call("large", Message(), timeout=5)
    with pytest.raises(SwarmError, match="TypeError"):
        await caller.call("object", Message(), timeout=5)


async def test_a_handler_that_is_cancelled_answers_at_once() -> None:
    tasks: list[asyncio.Task[None]] = []

    async def answer(call: IncomingCall) -> Message:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        return await never(call)

    caller, _ = channels(answer)
    call = asyncio.ensure_future(caller.call("x", Message(), timeout=5))
    await settle()
    tasks[0].cancel()
    with pytest.raises(SwarmError, match="was cancelled"):
        await call


async def test_an_error_carries_its_kind_and_place_and_is_cut_short() -> None:
    async def answer(call: IncomingCall) -> Message:
        error = Refused("no " * 10_000)
        error.at = "back.0.0.0"
        raise error

    caller, _ = channels(answer)
    with pytest.raises(Refused) as caught:
        await caller.call("x", Message(), timeout=5)
    assert caught.value.at == "back.0.0.0"
    assert len(str(caught.value)) < 3000


async def test_too_many_calls_are_refused_as_busy_and_reading_stops() -> None:
    caller, server = channels(never)
    calls = [
        asyncio.ensure_future(caller.call("x", Message(), timeout=5)) for _ in range(4 * MAX_CALLS_IN_FLIGHT)
    ]
    for _ in range(20):
        await settle()
    assert len(server._answering) <= 2 * MAX_CALLS_IN_FLIGHT + 1
    done = [call for call in calls if call.done()]
    assert done
    assert all(isinstance(call.exception(), Busy) for call in done)
    assert not any(call.done() for call in calls[:MAX_CALLS_IN_FLIGHT])
    caller.close()
    await asyncio.gather(*calls, return_exceptions=True)
    server.abort("end of test")
    await server.lost


async def test_calls_that_hold_too_much_stop_the_reading_until_answered() -> None:
    release = asyncio.Event()

    async def slow(call: IncomingCall) -> Message:
        await release.wait()
        return Message()

    caller, server = channels(slow, max_payload=10_000)
    large = Message(tensors={"x": torch.zeros(9_000, dtype=torch.uint8)})
    calls = [asyncio.ensure_future(caller.call("x", large, timeout=5)) for _ in range(4)]
    await settle()
    assert len(server._answering) == 2
    assert not server._transport.reading  # type: ignore[attr-defined]
    release.set()
    await asyncio.gather(*calls)
    assert server._transport.reading  # type: ignore[attr-defined]


async def test_a_peer_that_pings_and_does_not_read_fills_no_memory() -> None:
    left, right = ends()
    server = CallChannel(right, "caller", answer=echo, traffic=ByteCount())
    right.set_write_buffer_limits(high=1000)
    ping = b"".join(tensor_frame.encode(tensor_frame.PING, 0, "ping", Message()))
    left.protocol = server  # never reads: `reading` stays False
    for _ in range(1000):
        left.other.protocol.get_buffer(-1)
        left._outgoing += ping
    left._schedule()
    for _ in range(100):
        await settle()
    assert right.get_write_buffer_size() < 1100


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        tensor_frame.PREFIX.pack(b"DQ", 99, tensor_frame.CALL, 0, 1, 0),
        tensor_frame.PREFIX.pack(b"DQ", tensor_frame.PROTOCOL_VERSION, 77, 0, 1, 0),
        tensor_frame.PREFIX.pack(b"DQ", tensor_frame.PROTOCOL_VERSION, tensor_frame.CALL, 2**31, 1, 0),
        tensor_frame.PREFIX.pack(b"DQ", tensor_frame.PROTOCOL_VERSION, tensor_frame.CALL, 10, 1, 2**60),
        tensor_frame.PREFIX.pack(b"DQ", tensor_frame.PROTOCOL_VERSION, tensor_frame.CALL, 0, 1, 0),
        b"".join(tensor_frame.encode(tensor_frame.CALL, 1, "x", Message())).replace(b"\xa1m", b"\xa1q"),
    ],
)
async def test_bytes_that_are_no_frame_end_the_stream(raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    left, right = ends()
    server = CallChannel(right, "caller", answer=echo, traffic=ByteCount())
    left.protocol = asyncio.BufferedProtocol()
    with caplog.at_level(logging.WARNING):
        left.write(raw)
        await server.lost
    assert "bad frame" in server.closed.result()
    assert "closing the stream from caller" in caplog.text


async def test_the_accepting_side_does_not_call() -> None:
    caller, server = channels(echo)
    server._write(tensor_frame.encode(tensor_frame.CALL, 1, "x", Message()))
    await caller.lost
    assert "that this side dialled" in caller.closed.result()


async def test_a_frame_that_never_ends_is_overdue_and_our_own_pause_is_not() -> None:
    caller, server = channels(echo)
    server._incoming.received(5, now=100.0)
    assert not server._incoming.overdue(129.0)
    assert server._incoming.overdue(131.0)
    server._incoming.resumed(131.0)
    assert not server._incoming.overdue(160.0)
    caller.close()


async def test_closing_twice_and_aborting_after_it_is_harmless() -> None:
    caller, server = channels(echo)
    caller.close()
    caller.close("again")
    caller.abort("third")
    await caller.lost
    await server.lost
    assert caller.closed.result() == "closed by this side"


async def test_a_goodbye_that_is_not_taken_does_not_keep_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distqat.swarm.call_channel.LINGER_S", 0.01)
    caller, server = channels(echo)
    server._transport.pause_reading()
    caller.close()
    await asyncio.wait_for(asyncio.shield(caller.lost), 5)
