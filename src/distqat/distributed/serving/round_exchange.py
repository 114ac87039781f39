"""What a member of a round exchanges: contributions with the other members, calls with the client."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from torch import Tensor

from distqat.diloco.tensor_digest import state_digest
from distqat.distributed.serving.committed_state import CommittedState
from distqat.distributed.serving.hosted_replica import HostedReplica
from distqat.distributed.serving.round_arithmetic import RoundArithmetic
from distqat.distributed.transfer.tied_weight_exchange import TiedWeightExchange
from distqat.errors import BadContribution, RemoteFault, RunFailed, SwarmError
from distqat.failpoints import failpoint
from distqat.failures import Repeats
from distqat.protocol.calls.round_calls import (
    Contribute,
    ContributionSet,
    FetchContribution,
    ReadyForRound,
    SetMember,
    VoteOnResult,
)
from distqat.protocol.convener_actions import OpenRound
from distqat.protocol.round_answers import RoundCommitted, RoundDiscarded, RoundMissed
from distqat.swarm.call_messages import exchange
from distqat.swarm.incoming_call import IncomingCall
from distqat.swarm.tensor_frame import Message

logger = logging.getLogger(__name__)

Named = dict[str, Tensor]
RoundEnd = RoundMissed | RoundCommitted | RoundDiscarded
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

    async def contribution(self, request: FetchContribution, call: IncomingCall) -> Message:
        """Our encoded contribution, for another member; waits until there is one to that attempt."""
        failpoint("round.sending")
        wanted = request.round, request.attempt
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

    async def ready(self, round: int) -> RoundMissed | OpenRound:
        """Returns when the client opens the round after `round`."""
        request = ReadyForRound(self._host.stage, self._host.uid, round)
        return await self._host.coordinator.ask(request, timeout=READY_TIMEOUT)

    async def contribute(self, own: PublishedContribution) -> ContributionSet | RoundEnd:
        """Tell the client what we give; what makes up the round, or what became of it."""
        host, nbytes = self._host, sum(tensor.nbytes for tensor in own.tensors.values())
        offer = own.digest, own.samples, nbytes
        request = Contribute(host.stage, host.uid, own.round, own.attempt, *offer)
        return await host.coordinator.ask(request, timeout=3 * self._rounds.options.averaging_timeout)

    async def result(
        self, own: PublishedContribution, base: CommittedState, agreed: ContributionSet
    ) -> CommittedState | None:
        """What an agreed set of contributions makes of `base`; None if one cannot be had or verified."""
        try:
            sets = await asyncio.gather(*(self._fetch(own, member) for member in agreed.set))
            counts, tied = [member.samples for member in agreed.set], self._tied
            copies = await tied.fetch(agreed.copy) if tied is not None and agreed.copy else None
            failpoint("round.reducing")
            return await self._host.between_steps(lambda: self._rounds.result(base, sets, counts, copies))
        except SwarmError as error:
            logger.warning("round %d: no result here: %s", own.round, error)
            self.end_if_repeated(error, own.round)
            return None

    async def vote(self, own: PublishedContribution, result: CommittedState | None) -> RoundEnd:
        """Vote until the outcome is known: unknown is neither commit nor discard."""
        host, digest, copy = self._host, result.digest if result else None, ""
        if result is not None and self._tied is not None:
            copy = await asyncio.to_thread(self._tied.digest, result)
        request = VoteOnResult(host.stage, host.uid, own.round, own.attempt, digest, copy)
        while True:
            try:
                return await host.coordinator.ask(request, timeout=READY_TIMEOUT)
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

    async def _fetch(self, own: PublishedContribution, member: SetMember) -> Named:
        if member.hop.uid == self._host.uid:
            return own.tensors
        link = await self._host.transport.link(member.hop.address)
        request, timeout = FetchContribution(own.round, own.attempt), self._rounds.options.averaging_timeout
        tensors = dict((await exchange(link, request, timeout=timeout))[1].tensors)
        if state_digest(tensors) != member.digest:
            raise BadContribution(
                f"the contribution of {member.hop.uid} has another digest than it announced"
            )
        return tensors
