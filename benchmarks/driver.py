"""A trainer that drives stages directly, and clocks what its calls take."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from distqat.config import Config
from distqat.distributed.training.step_driver import StepDriver, StepResult
from distqat.protocol.call_schema import fields_of
from distqat.protocol.hop import Hop, PeerAddress
from distqat.swarm.call_channel import Answer
from distqat.swarm.incoming_call import ByteCount
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import Gone, LinkLike, Transport
from distqat.tasks.base import Batch

TIMEOUT_S = 120.0
PHASES = {name: name for name in ("open", "prepare", "decide", "commit")} | {"train": "microbatches"}

Spans = dict[str, tuple[float, float]]
"""By method: when the first call of a step began, and when the last one ended."""


class Driver:
    """Runs step after step over one route."""

    def __init__(self, config: Config, transport: Transport, hops: list[Hop]) -> None:
        self.hops = hops
        self.spans: Spans = {}
        self._transport = transport
        self._step = 0
        self._stepper = StepDriver(
            transport=_ClockedTransport(transport, self.spans),
            trainer=transport.peer,
            incarnation=1,
            options=config.model_pipeline,
            window_timeout=TIMEOUT_S,
            max_grad_norm=config.diloco.max_grad_norm,
        )

    async def step(self, batch: list[Batch]) -> StepResult:
        self._step += 1
        return await self._stepper.run(batch, self.hops, self._step, 0, consumed=_nothing)

    async def clocked_step(self, batch: list[Batch]) -> dict[str, float]:
        """Seconds of a step, and of its phases."""
        self.spans.clear()
        began = time.perf_counter()
        await self.step(batch)
        seconds = {"step": time.perf_counter() - began}
        return seconds | {PHASES[m]: end - start for m, (start, end) in self.spans.items() if m in PHASES}

    async def calibrate(self, batch: list[Batch]) -> None:
        self._step += 1
        await self._stepper.calibrate(batch, self.hops, self._step, 0)

    async def statuses(self) -> list[dict[str, Any]]:
        """What every stage says of itself; the first also of its link to the second, and so on."""
        answers = []
        for position, hop in enumerate(self.hops):
            following = self.hops[position + 1 : position + 2]
            asked = Message({"next": fields_of(following[0])} if following else {})
            link = await self._transport.link(hop.address)
            answers.append(dict((await link.call("status", asked, timeout=TIMEOUT_S, urgent=True)).fields))
        return answers

    async def calibrating(self) -> bool:
        return any(status["calibrating"] for status in await self.statuses())

    async def state(self, position: int) -> dict[str, Any]:
        """The state dict of one stage."""
        link = await self._transport.link(self.hops[position].address)
        return dict((await link.call("state", timeout=TIMEOUT_S)).tensors)

    async def link_bytes(self) -> list[tuple[int, int]]:
        """Bytes out and in of the trainer's link to each stage."""
        links = [await self._transport.link(hop.address) for hop in self.hops]
        return [(link.bytes_out(), link.bytes_in()) for link in links]


async def _nothing() -> None:
    return


class _ClockedTransport:
    """A transport whose links write down when calls begin and end."""

    def __init__(self, inner: Transport, spans: Spans) -> None:
        self.peer = inner.peer
        self.traffic: ByteCount = inner.traffic
        self._inner = inner
        self._spans = spans

    async def serve(self, answer: Answer, gone: Gone | None = None) -> None:
        await self._inner.serve(answer, gone)

    async def link(self, to: PeerAddress, *, prompt: bool = False) -> LinkLike:
        return _ClockedLink(await self._inner.link(to, prompt=prompt), self._spans)

    async def close(self) -> None:
        await self._inner.close()


class _ClockedLink:
    def __init__(self, inner: LinkLike, spans: Spans) -> None:
        self.peer = inner.peer
        self.bytes_out: Callable[[], int] = inner.bytes_out
        self.bytes_in: Callable[[], int] = inner.bytes_in
        self._inner = inner
        self._spans = spans

    @property
    def alive(self) -> bool:
        return self._inner.alive

    async def call(
        self,
        method: str,
        message: Message | None = None,
        *,
        timeout: float,
        urgent: bool = False,
        prompt: bool = False,
    ) -> Message:
        began = time.perf_counter()
        call: Awaitable[Message] = self._inner.call(
            method, message, timeout=timeout, urgent=urgent, prompt=prompt
        )
        reply = await call
        first = self._spans.get(method, (began, began))[0]
        self._spans[method] = first, time.perf_counter()
        return reply

    def close(self, reason: str = "closed by this side") -> None:
        self._inner.close(reason)
