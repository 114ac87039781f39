"""A weight that two stages keep tied: the convener names a copy, all members average with the same one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes.direct_calls import from_peer, hop_of
from tests.fakes.memory_transport import MemoryNetwork, MemoryTransport
from torch import nn

from distqat.codec import get_codec
from distqat.diloco.options import DilocoOptions
from distqat.distributed.coordination.commit_log import CommitLog
from distqat.distributed.coordination.round_service import RoundService
from distqat.distributed.coordination.tied_weight_rounds import KEPT, TiedCopy, TiedWeightRounds
from distqat.distributed.serving.committed_state import CommittedState, initial
from distqat.distributed.serving.hosted_replica import HostedReplica
from distqat.distributed.serving.round_arithmetic import RoundArithmetic
from distqat.distributed.serving.round_member import RoundMember
from distqat.distributed.serving.serving_observer import ServingObserver
from distqat.distributed.serving.step_tally import StepTally
from distqat.distributed.transfer.tied_weight_exchange import TiedWeightExchange
from distqat.errors import BadContribution, StageUnavailable
from distqat.protocol.call_schema import Call
from distqat.protocol.calls.round_calls import CopyHolders, FetchContribution, FetchTiedWeight, FoundStage
from distqat.protocol.calls.slot_calls import AskMembers, StageMembers
from distqat.protocol.hop import Hop, PeerAddress
from distqat.swarm.call_messages import CallHandlers

HEAD, TAIL, TIED = "head", "tail", "lm_head.weight"
OWN = {HEAD: "wte.weight", TAIL: TIED}


class TestTwins:
    def committed(self, twins: TiedWeightRounds, stage: str, *rounds: int) -> None:
        for round in rounds:
            twins.told(stage, round, f"result {round}", f"copy {round}")
            twins.committed(stage, round, f"result {round}")

    def test_the_round_before_is_offered_and_stays(self) -> None:
        twins = TiedWeightRounds((HEAD, TAIL))
        assert twins.offer(HEAD, 1, 0) is None
        self.committed(twins, TAIL, 1, 2)
        assert twins.offer(HEAD, 2, 0) == TiedCopy(TAIL, 1, "copy 1")
        self.committed(twins, TAIL, 3, 4, 5)
        assert twins.offer(HEAD, 2, 0) == TiedCopy(
            TAIL, 1, "copy 1"
        )  # a member that asks late hears the same
        assert twins.offer(HEAD, 2, 1) is None  # in case nobody gives it
        assert twins.offer(HEAD, 2, 2) == TiedCopy(TAIL, 5 - KEPT + 1, f"copy {5 - KEPT + 1}")
        assert twins.offer("body", 2, 0) is None

    def test_a_copy_that_voters_do_not_agree_on_is_not_offered(self) -> None:
        twins = TiedWeightRounds((HEAD, TAIL))
        twins.told(TAIL, 1, "result", "copy")
        twins.told(TAIL, 1, "result", "another")
        twins.told(TAIL, 1, "refused", "third")
        twins.committed(TAIL, 1, "result")
        assert twins.offer(HEAD, 2, 0) is None

    def test_a_stage_that_begins_anew_offers_nothing(self) -> None:
        twins = TiedWeightRounds((HEAD, TAIL))
        self.committed(twins, TAIL, 1)
        twins.forget(TAIL)
        assert twins.offer(HEAD, 2, 0) is None


class Steps:
    """As much of a replica's steps, compute thread and coordinator as rounds ask for."""

    tally = StepTally()

    @property
    def attempts(self) -> Steps:
        return self

    @contextlib.asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        yield

    async def pause(self) -> None: ...

    def resume(self) -> None: ...

    async def submit(self, priority: object, kind: str, job: Any) -> Any:
        return job()


class Client:
    """The client as its link would give it to the server `uid`."""

    def __init__(self, service: RoundService, uid: str) -> None:
        self.service, self.uid = service, uid

    async def ask(self, request: Call[Any], *, timeout: float = 0) -> Any:
        if isinstance(request, AskMembers):
            newest = self.service.round_of(request.stage)
            assert newest is not None
            return StageMembers((), *newest)
        return await self.service.handlers[type(request)](request, from_peer(self.uid))

    insist = ask


class Half(nn.Module):
    """A stage with the tied weight under its own name, and one more."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage, self.module = stage, self
        torch.manual_seed(len(stage) + ord(stage[0]))
        own = nn.Embedding(5, 3) if stage == HEAD else nn.Linear(3, 5, bias=False)
        self.add_module(OWN[stage].partition(".")[0], own)
        self.norm = nn.LayerNorm(3)


class Scene:
    def __init__(self, folder: Path) -> None:
        options = DilocoOptions.model_validate({"inner_steps": 1, "averaging_timeout": 5.0, "codec": "fp32"})
        self.options, self.network = options, MemoryNetwork()
        self.log = CommitLog(folder / "log.jsonl", "run")
        tied = HEAD, TAIL
        self.service = RoundService([*tied], options, self.log, lambda record: None, hop_of, tied)
        self.members: dict[str, RoundMember] = {}
        self.modules: dict[str, Half] = {}
        self.running: list[asyncio.Future[None]] = []

    async def add(self, stage: str, index: int) -> None:
        uid, module = f"{stage}.0.{index}.0", Half(stage)
        transport, steps = MemoryTransport(self.network, uid), Steps()
        rounds = RoundArithmetic(self.options, get_codec(self.options.codec), module)
        shared = initial(module)
        if index == 0:
            await self.service.found(FoundStage(stage, uid, shared.digest), from_peer(uid))
        tied = TiedWeightExchange({TIED: OWN[stage]}, transport, 5.0)
        client: Any = Client(self.service, uid)
        hop, observer = Hop(uid, PeerAddress(uid)), ServingObserver()
        host = HostedReplica(hop, module, steps, transport, client)  # type: ignore[arg-type]
        member = RoundMember(host, steps, rounds, shared, observer, tied)  # type: ignore[arg-type]

        handlers = {FetchTiedWeight: member.tied, FetchContribution: member.exchange.contribution}
        await transport.serve(CallHandlers(uid, handlers).answer)
        await member.catch_up()
        self.members[uid], self.modules[uid] = member, module
        self.running.append(asyncio.ensure_future(member.run()))

    async def round(self, stage: str, move: float = 0.0) -> tuple[CommittedState, CommittedState]:
        """All members of a stage take a step and average; the committed state before and after."""
        own = {uid: member for uid, member in self.members.items() if uid.startswith(stage)}
        before = next(iter(own.values())).committed
        for number, (uid, member) in enumerate(own.items()):
            with torch.no_grad():
                self.modules[uid].get_parameter(OWN[stage]).add_(move * (number + 1))
            member.step_applied(4)
        await asyncio.gather(*(member.holding(before.round + 1) for member in own.values()))
        digests = {member.committed.digest for member in own.values()}
        assert digests == {self.log.digest(stage, before.round + 1)}
        return before, next(iter(own.values())).committed


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(tmp_path)
    for stage in (HEAD, TAIL):
        for index in range(2):
            await made.add(stage, index)
    yield made
    for running in made.running:
        running.cancel()
    await asyncio.gather(*made.running, return_exceptions=True)
    made.service.close()
    made.log.close()


async def test_copies_come_together_and_members_stay_equal_to_the_bit(scene: Scene) -> None:
    for stage in (HEAD, TAIL):  # nobody knows the other's copy yet
        before, after = await scene.round(stage)
        assert torch.equal(after.anchor[OWN[stage]], before.anchor[OWN[stage]])
    (_, head), (_, tail) = await scene.round(HEAD), await scene.round(TAIL)
    torch.testing.assert_close(head.anchor[OWN[HEAD]], tail.anchor[TIED])
    first = Half(HEAD).get_parameter(OWN[HEAD]) + Half(TAIL).get_parameter(TIED)
    torch.testing.assert_close(head.anchor[OWN[HEAD]], (first / 2).detach())
    for uid, module in scene.modules.items():  # what is trained follows the anchor
        stage = uid.partition(".")[0]
        torch.testing.assert_close(module.get_parameter(OWN[stage]).detach(), head.anchor[OWN[HEAD]])


async def test_copies_that_are_trained_apart_stay_within_one_round(scene: Scene) -> None:
    for _ in range(4):
        _, head = await scene.round(HEAD, move=0.1)
        _, tail = await scene.round(TAIL, move=-0.1)
    apart = (head.anchor[OWN[HEAD]] - tail.anchor[TIED]).abs().max()
    _, again = await scene.round(HEAD, move=0.1)
    moved = (again.anchor[OWN[HEAD]] - (head.anchor[OWN[HEAD]] + tail.anchor[TIED]) / 2).abs().max()
    assert apart < 2.1 * moved  # what both moved in the last round, in opposite directions


async def test_a_round_goes_on_without_a_copy_that_nobody_gives(scene: Scene) -> None:
    await scene.round(TAIL)
    for uid in [uid for uid in scene.members if uid.startswith(TAIL)]:
        scene.members[uid]._tied._kept.clear()  # type: ignore[union-attr]
    before = scene.members["head.0.0.0"].committed
    committing = asyncio.ensure_future(scene.round(HEAD))
    while not committing.done():
        await asyncio.sleep(0)
        for uid, member in scene.members.items():
            if uid.startswith(HEAD) and not member._due.is_set() and member.committed is before:
                member.step_applied(4)  # the attempt without it takes an inner step more
    _, after = await committing
    assert torch.equal(after.anchor[OWN[HEAD]], before.anchor[OWN[HEAD]])


async def test_a_copy_of_another_digest_or_shape_is_refused(scene: Scene) -> None:
    twin = TiedWeightExchange({TIED: OWN[HEAD]}, MemoryTransport(scene.network, "guest"), 5.0)
    holders = tuple(hop_of(uid) for uid in scene.members if uid.startswith(TAIL))
    digest = scene.members["tail.0.0.0"]._tied.digest(scene.members["tail.0.0.0"].committed)  # type: ignore[union-attr]
    copies = await twin.fetch(CopyHolders(0, digest, holders))
    assert list(copies) == [OWN[HEAD]]
    with pytest.raises(StageUnavailable, match="not what it announced"):
        await twin.fetch(CopyHolders(0, "other", holders))
    rounds, shared = scene.members["head.0.0.0"]._rounds, scene.members["head.0.0.0"].committed
    sent = rounds.contribution(shared, _local(scene))
    for wrong in (torch.zeros(5, 4), torch.full((5, 3), float("nan")), torch.zeros(5, 3).half()):
        with pytest.raises(BadContribution, match="copy of"):
            rounds.result(shared, [sent], [4], {OWN[HEAD]: wrong})


def _local(scene: Scene) -> Any:
    from distqat.distributed.serving.committed_state import ReplicaWeights

    return ReplicaWeights.of(scene.modules["head.0.0.0"])
