"""Deaths and bad contributions in an outer round: survivors decide alike and stay equal to the bit."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from tests.failover.memory_scene import Fault, arm, equal
from tests.failover.round_scene import RoundSwarm, one_stage

from distqat.distributed.serving.committed_state import CommittedState, ReplicaWeights
from distqat.distributed.transfer.snapshot_exchange import inner_state
from distqat.errors import BadContribution

pytestmark = [pytest.mark.timeout(40), pytest.mark.usefixtures("one_thread")]
VICTIM = "full.0.1.0"


@pytest.mark.parametrize("overlap", [False, True], ids=["paused", "overlapped"])
@pytest.mark.parametrize(
    ("point", "commits"),
    [
        ("client.ready", True),  # gathering
        ("round.before_contribute", True),
        ("call.contribution", False),  # its contribution is in the set, and nobody can fetch it
        ("round.before_vote", True),
    ],
)
async def test_survivors_commit_or_discard_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, point: str, commits: bool, overlap: bool
) -> None:
    fault = Fault(point, VICTIM, hit=2)
    async with RoundSwarm(one_stage(overlap=overlap), tmp_path) as swarm:
        passage = arm(monkeypatch, swarm.kill, fault)
        swarm.client.passage = passage
        for replica in swarm.replicas:
            replica.passage = passage
        if point == "call.contribution":
            fault.hit = 3  # two others fetch in the first round
        first = await swarm.round(1)
        assert [record["committed"] for record in first] == [True] * 3
        disturbed = await swarm.round(2)
        assert fault.fired
        assert swarm.dead == {VICTIM}
        assert [record["committed"] for record in disturbed] == [commits] * 2
        swarm.check()
        for seed in (3, 4):
            assert [record["committed"] for record in await swarm.round(seed)] == [True] * 2
            swarm.check()
        rounds = [record["round"] for record in swarm.client.records if record["committed"]]
        assert rounds == list(range(1, len(rounds) + 1))


async def test_a_member_that_missed_a_commit_catches_up(tmp_path: Path) -> None:
    async with RoundSwarm(one_stage(), tmp_path) as swarm:
        await swarm.round(1)
        late = swarm.replicas[1]
        result, missed = late.rounds.result, []

        def unlucky(shared: CommittedState, *given: object) -> CommittedState:
            missed.append(shared.round)
            late.rounds.result = result  # type: ignore[method-assign]
            raise BadContribution("as the test wants")

        late.rounds.result = unlucky  # type: ignore[assignment, method-assign]
        records = await swarm.round(2)
        assert missed == [1]
        assert [record["committed"] for record in records] == [True] * 3
        swarm.check()
        for seed in (3, 4):
            assert all(record["committed"] for record in await swarm.round(seed))
            swarm.check()
        assert [r["members"] for r in swarm.client.records] == [3, 3, 3, 3]


@pytest.mark.parametrize("wrong", ["nan", "infinity", "outlier", "another shape", "nan in a buffer"])
async def test_a_bad_contribution_is_left_out_by_everybody(tmp_path: Path, wrong: str) -> None:
    """What the honest make of the round is, to the bit, what they make of it without the liar."""
    config = one_stage(codec="fp32")
    async with RoundSwarm(config, tmp_path) as swarm:
        await swarm.round(1)
        liar, honest = swarm.replicas[1], [swarm.replicas[0], swarm.replicas[2]]
        encode, told, sent = liar.rounds.contribution, [], {}

        def lie(shared: CommittedState, base: ReplicaWeights) -> dict[str, torch.Tensor]:
            true = encode(shared, base)
            name = next(n for n in sorted(true) if true[n].is_floating_point() and true[n].numel() > 10)
            bad = {n: t.clone() for n, t in true.items()}
            if wrong == "outlier":
                bad = {n: t * 1e6 if n.startswith("delta/") else t for n, t in bad.items()}
            elif wrong == "another shape":
                bad[name] = bad[name].flatten()[:-1]
            elif wrong == "nan in a buffer":
                bad["buffer/nobody"] = torch.tensor([float("nan")])
            else:
                bad[name].view(-1)[0] = float(wrong.replace("infinity", "inf"))
            told.append(wrong)
            return bad

        for replica in honest:
            own = replica.rounds.contribution

            def remember(
                shared: CommittedState, base: ReplicaWeights, own=own, uid=replica.uid
            ) -> dict[str, torch.Tensor]:
                sent[uid] = own(shared, base)
                return sent[uid]

            replica.rounds.contribution = remember  # type: ignore[method-assign]
        liar.rounds.contribution = lie  # type: ignore[method-assign]
        before = honest[0].member.committed
        records = await swarm.round(2)
        assert told == [wrong]
        assert [record["committed"] for record in records] == [True] * 3
        swarm.check()
        samples = [12 * config.diloco.inner_steps] * 2
        without = honest[0].rounds.result(before, [sent[r.uid] for r in honest], samples)
        assert honest[0].member.committed.digest == without.digest
        assert equal(liar.weights(), {**liar.weights(), **without.anchor, **without.steps}), (
            "its own are no use"
        )
        assert not inner_state(liar.replica), "nor are its moments"
        assert all(inner_state(replica.replica) for replica in honest)
        liar.rounds.contribution = encode  # type: ignore[method-assign]
        assert all(record["committed"] for record in await swarm.round(3))
        swarm.check()


async def test_weights_that_are_not_finite_go_back_to_the_anchor(tmp_path: Path) -> None:
    """Before they are sent: the replica takes part in the round with nothing, as good as the others."""
    async with RoundSwarm(one_stage(), tmp_path) as swarm:
        await swarm.round(1)
        sick = swarm.replicas[1]
        begin = sick.member._until_open

        async def falls_ill() -> dict[str, object]:
            opened = await begin()
            with torch.no_grad():
                next(sick.replica.module.parameters()).fill_(float("nan"))
            return opened

        sick.member._until_open = falls_ill  # type: ignore[method-assign]
        assert [record["committed"] for record in await swarm.round(2)] == [True] * 3
        swarm.check()  # finite, too
        sick.member._until_open = begin  # type: ignore[method-assign]
        assert [record["committed"] for record in await swarm.round(3)] == [True] * 3
        swarm.check()


async def test_without_a_learning_rate_no_weight_ever_moves(tmp_path: Path) -> None:
    async with RoundSwarm(one_stage(inner=0.0), tmp_path) as swarm:
        start = swarm.replicas[0].weights()
        for seed in range(1, 5):
            await swarm.round(seed)
            swarm.check()
            assert all(equal(start, replica.weights()) for replica in swarm.replicas)


@pytest.mark.parametrize(("model", "quantize"), [("mlp", True), ("resnet18", True)])
async def test_a_joiner_holds_what_its_donor_holds(tmp_path: Path, model: str, quantize: bool) -> None:
    async with RoundSwarm(one_stage(model, quantize=quantize), tmp_path, replicas=2) as swarm:
        for seed in (1, 2):
            await swarm.round(seed)
        donor = swarm.replicas[0]
        weights, step = donor.weights(), donor.replica.step
        moments = [inner_state(replica.replica) for replica in swarm.replicas]
        joiner = await asyncio.wait_for(swarm.add(), 20)
        own, theirs = joiner.member.committed, donor.member.committed
        assert (own.round, own.digest) == (theirs.round, theirs.digest) == (2, theirs.digest)
        assert equal(own.tensors(), theirs.tensors())
        assert any(key.startswith("outer/") for key in own.tensors())
        assert joiner.replica.step == step
        assert any(equal(inner_state(joiner.replica), each) for each in moments), "the fastest donor's"
        assert not joiner.replica.calibrating
        loaded = {**own.anchor, **own.steps, **own.buffers}
        assert equal(joiner.weights(), {name: loaded[name] for name in joiner.weights()})
        assert weights.keys() == joiner.weights().keys()
        await swarm.round(3)  # its first round is the next one, with what it has done by then
        await swarm.agreed()
        assert swarm.client.records[-1]["members"] == 3
        swarm.check()
