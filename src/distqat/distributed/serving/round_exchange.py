"""What a member of a round exchanges: contributions with the other members, calls with the client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from distqat.diloco.tensor_digest import state_digest
from distqat.distributed.network.call_fields import Hop, take
from distqat.distributed.serving.committed_state import CommittedState
from distqat.distributed.serving.hosted_replica import HostedReplica
from distqat.distributed.serving.round_arithmetic import RoundArithmetic
from distqat.distributed.transfer.tied_weight_exchange import TiedWeightExchange
from distqat.errors import BadContribution, RemoteFault, RunFailed, SwarmError
from distqat.failpoints import failpoint
from distqat.failures import Repeats
from distqat.swarm.incoming_call import IncomingCall
from distqat.swarm.tensor_frame import Message

logger = logging.getLogger(__name__)

Named = dict[str, Tensor]
ASK_AGAIN_S = 0.5
READY_TIMEOUT = 3600.0  # a round opens when its members are ready; a dead client ends the call at once


@dataclass(frozen=True)
class PublishedContribution:
    """Our own contribution to one attempt at a round; `samples` is how many it was trained on."""

    round: int
    attempt: int
    tensors: Named
    samples: int
    digest: str


class RoundExchange:
    """The network side of one replica's rounds."""

    def __init__(self, host: HostedReplica, rounds: RoundArithmetic, tied: TiedWeightExchange | None) -> None:
        self._host = host
        self._rounds = rounds
        self._tied = tied
        self._published: PublishedContribution | None = None
        self._publication = asyncio.Event()
        self._repeats = Repeats()  # of exceptions elsewhere, since the last committed round

    async def contribution(self, call: IncomingCall) -> Message:
        """Our encoded contribution, for another member; waits until there is one to that attempt."""
        fields = call.message.fields
        failpoint("round.sending")
        wanted = take(fields, "round", int), take(fields, "attempt", int)
        while self._published is None or (self._published.round, self._published.attempt) < wanted:
            self._publication.clear()
            await self._publication.wait()
        if (self._published.round, self._published.attempt) != wanted:
            raise BadContribution(f"the contribution to round {wanted[0]} attempt {wanted[1]} is gone")
        return Message({}, self._published.tensors)

    def publish(self, round: int, attempt: int, tensors: Named, samples: int) -> PublishedContribution:
        """Have `contribution` give these tensors from now on."""
        own = PublishedContribution(round, attempt, tensors, samples, state_digest(tensors))
        self._published = own
        self._publication.set()
        return own

    async def ready(self, round: int) -> dict[str, Any]:
        """Returns when the client opens the round after `round`: its number, attempt and members."""
        fields = {"stage": self._host.stage, "uid": self._host.uid, "round": round}
        return await self._host.coordinator.call("ready", fields, timeout=READY_TIMEOUT)

    async def contribute(self, own: PublishedContribution) -> dict[str, Any]:
        """Tell the client what we give; the members whose contributions make up the round, in their order."""
        nbytes = sum(tensor.nbytes for tensor in own.tensors.values())
        offer = {"digest": own.digest, "samples": own.samples, "nbytes": nbytes}
        timeout = 3 * self._rounds.options.averaging_timeout
        return await self._host.coordinator.call("contribute", {**self._names(own), **offer}, timeout=timeout)

    async def result(
        self,
        own: PublishedContribution,
        base: CommittedState,
        members: Sequence[Any],
        copy: Mapping[str, Any] | None,
    ) -> CommittedState | None:
        """What the contributions of `members` make of `base`; None if one cannot be had or verified.

        `copy` tells where another stage's copy of a tied weight is that this attempt averages with.
        """
        try:
            sets = await asyncio.gather(*(self._fetch(own, member) for member in members))
            counts = [take(member, "samples", int) for member in members]
            copies = await self._tied.fetch(copy) if self._tied is not None and copy else None
            failpoint("round.reducing")
            return await self._host.between_steps(lambda: self._rounds.result(base, sets, counts, copies))
        except SwarmError as error:
            logger.warning("round %d: no result here: %s", own.round, error)
            self.end_if_repeated(error, own.round)
            return None

    async def vote(self, own: PublishedContribution, result: CommittedState | None) -> dict[str, Any]:
        """Vote until the outcome is known: unknown is neither commit nor discard."""
        fields = {**self._names(own), "digest": result.digest if result else None}
        if result is not None and self._tied is not None:
            fields["copy"] = await asyncio.to_thread(self._tied.digest, result)
        while True:
            try:
                return await self._host.coordinator.call("vote", fields, timeout=READY_TIMEOUT)
            except SwarmError as error:
                logger.warning("the outcome of round %d is unknown (%s); asking again", own.round, error)
                self.end_if_repeated(error, own.round)
                await self._host.coordinator.wait()
                await asyncio.sleep(ASK_AGAIN_S)  # it may answer that our slot is not ours just now

    def end_if_repeated(self, error: SwarmError, round: int) -> None:
        """Raises RunFailed for an exception at the client or a member that has come again and again."""
        if isinstance(error, RemoteFault) and self._repeats.add((error.kind, error.place)):
            raise RunFailed(
                f"round {round} of {self._host.stage} fails in the same way at every attempt: {error.said}"
            )

    def committed(self) -> None:
        """A round went well: what failed before does not count any more."""
        self._repeats.clear()

    async def _fetch(self, own: PublishedContribution, member: Any) -> Named:
        hop, digest = Hop.parse(member), take(member, "digest", str)
        if hop.uid == self._host.uid:
            return own.tensors
        link = await self._host.transport.link(hop.address)
        fields = {"round": own.round, "attempt": own.attempt}
        timeout = self._rounds.options.averaging_timeout
        tensors = dict((await link.call("contribution", Message(fields), timeout=timeout)).tensors)
        if state_digest(tensors) != digest:
            raise BadContribution(f"the contribution of {hop.uid} has another digest than it announced")
        return tensors

    def _names(self, own: PublishedContribution) -> dict[str, Any]:
        host = self._host
        return {"stage": host.stage, "uid": host.uid, "round": own.round, "attempt": own.attempt}
