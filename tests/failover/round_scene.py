"""Replicas of one stage with their rounds, and the client's side of them, over the in-memory transport."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.failover.memory_scene import batches
from tests.fakes.direct_calls import from_peer, hop_of
from tests.fakes.memory_transport import MemoryNetwork, MemoryTransport
from tests.swarm_scene import AT, Stage
from typing_extensions import Self

from distqat.codec import get_codec
from distqat.config import Config
from distqat.distributed.assembly.stage_factory import feeds_norms
from distqat.distributed.coordination.commit_log import CommitLog
from distqat.distributed.coordination.round_service import RoundService
from distqat.distributed.network.coordinator_link import CoordinatorLink
from distqat.distributed.serving.committed_state import CommittedState, as_local, initial
from distqat.distributed.serving.compute_thread import Priority
from distqat.distributed.serving.hosted_replica import HostedReplica
from distqat.distributed.serving.round_arithmetic import RoundArithmetic
from distqat.distributed.serving.round_member import RoundMember
from distqat.distributed.serving.step_tally import StepOutcome
from distqat.distributed.training.step_driver import StepDriver
from distqat.distributed.transfer.donor import DonatedMoments, DonatedState, Donor, upload_bucket
from distqat.distributed.transfer.snapshot_exchange import fetch_newest, inner_state, load_inner_state
from distqat.protocol.calls.round_calls import FetchContribution, FoundStage
from distqat.protocol.calls.slot_calls import AskMembers, StageMembers
from distqat.protocol.calls.transfer_calls import DescribeState, FetchChunk
from distqat.protocol.hop import Hop, PeerAddress
from distqat.protocol.step_attempts import StepId
from distqat.swarm.call_channel import IncomingCall
from distqat.swarm.call_messages import CallHandlers
from distqat.swarm.directory import FinishedWord
from distqat.swarm.tensor_frame import Message

STAGE, CLIENT = "full", "client"


def one_stage(model: str = "mlp", *, quantize: bool = False, inner: float = 5e-3, **diloco: Any) -> Config:
    """A model in one stage, so that a replica can take its steps alone."""
    extra = {"width": 0.25} if model == "resnet18" else {"hidden": 16}
    return Config.model_validate(
        {
            "experiment_prefix": "rounds",
            "seed": 5,
            "data": {"dataset_name": "digits", "img_size": 8, "num_channels": 1},
            "diloco": {
                "inner_optim": {"type": "adam", "adam_lr": inner},
                "inner_steps": 2,
                "outer_steps": 1000,
                "averaging_timeout": 5.0,
                **diloco,
            },
            "model_pipeline": {
                "pipeline": [{"model_name": f"{model}.full", "num_classes": 10, **extra}],
                "microbatches": 3,
            },
            "quant": {"enabled": quantize, "warmup": {"float_share": 0}},
        }
    )


class OnlyClient:
    """As much of a directory as a Coordinator looks at."""

    run = "rounds"

    async def roles(self, role: str) -> list[PeerAddress]:
        return [PeerAddress(role)]

    async def finished(self) -> list[FinishedWord]:
        return []

    async def runs(self) -> set[str]:
        return {self.run}


class Convening:
    """The client's side: a RoundService, and who holds which slot."""

    def __init__(self, config: Config, network: MemoryNetwork, folder: Path) -> None:
        self.records: list[dict[str, Any]] = []
        self.passage: Callable[[str], None] = lambda point: None
        self.log = CommitLog(folder / "log.jsonl", config.experiment_prefix)
        self.service = RoundService([STAGE], config.diloco, self.log, self.records.append, hop_of)
        self.transport = MemoryTransport(network, CLIENT)
        self._gone: set[str] = set()

    def gone(self, peer: str, silent: bool = False) -> None:
        self.service.left(STAGE, peer, for_good=not silent)

    async def answer(self, call: IncomingCall) -> Message:
        AT.set(call.peer)
        self.passage(f"client.{call.method}")
        handlers = {AskMembers: self.members, **self.service.handlers}
        return await CallHandlers("the client", handlers).answer(call)

    async def members(self, request: AskMembers, call: IncomingCall) -> StageMembers:
        rounds = self.service
        if request.wait:
            assert await rounds.holders(STAGE).wait_for_donor(call.peer)
        newest = rounds.round_of(STAGE)
        assert newest is not None
        return StageMembers(tuple(rounds.holders(STAGE).hops.values()), *newest)


class Replica(Stage):
    """A stage with its rounds and a trainer of its own."""

    def __init__(self, config: Config, network: MemoryNetwork, index: int) -> None:
        super().__init__(config, STAGE, network, fail=set(), index=index)
        self.config = config
        self.hop = Hop(self.uid, PeerAddress(self.uid))
        self.coordinator = CoordinatorLink(self.transport, OnlyClient())  # type: ignore[arg-type]
        codec = get_codec(config.diloco.codec)
        module = self.replica.module
        stands = feeds_norms(config, STAGE, module)
        self.rounds = RoundArithmetic(config.diloco, codec, module, config.quant.warmup, stands=stands)
        self.ended: list[dict[str, Any]] = []
        self.changed = asyncio.Event()
        self.donor = Donor(self._held, self._moments, upload_bucket(None))
        self.member: RoundMember
        self.running: asyncio.Future[None]
        self._steps = 0
        self._stepper = StepDriver(
            transport=MemoryTransport(network, f"trainer {index}"),
            trainer=f"trainer {index}",
            incarnation=1,
            options=config.model_pipeline,
            window_timeout=20,
        )

    async def found(self, client: Convening) -> None:
        """Calibrate on real batches, then publish round 0."""
        await self.transport.serve(self.answer, self.steps.attempts.gone)
        for batch in batches(self.config, 50):
            if not self.replica.calibrating:
                break
            self._steps += 1
            await self._stepper.calibrate(batch, [self.hop], self._steps, 0)
        shared: CommittedState = await self._compute(lambda: initial(self.replica.module))
        await client.service.found(FoundStage(STAGE, self.uid, shared.digest), from_peer(self.uid))
        await self._begin(shared)

    async def join(self) -> None:
        """As a server does that comes later."""
        await self.transport.serve(self.answer, self.steps.attempts.gone)
        got = await fetch_newest(self.transport, self.coordinator, STAGE, own_uid=self.uid)
        assert got is not None

        def load() -> None:
            as_local(got.shared).load(self.replica.module)
            assert load_inner_state(self.replica, got.inner) == bool(got.inner)
            self.replica.step = got.step

        await self._compute(load)
        await self._begin(got.shared)

    async def _begin(self, shared: CommittedState) -> None:
        host = HostedReplica(self.hop, self.replica, self.compute, self.transport, self.coordinator)
        self.member = RoundMember(host, self.steps, self.rounds, shared, self)
        await self.member.catch_up()
        AT.set(self.uid)
        self.running = asyncio.ensure_future(self.member.run())

    async def _held(self, round: int) -> DonatedState:
        return DonatedState(await self.member.holding(round), self.replica.step)

    async def _moments(self) -> DonatedMoments:
        moments: DonatedMoments = await self._compute(
            lambda: DonatedMoments(inner_state(self.replica), self.replica.step)
        )
        return moments

    @property
    def steps_due(self) -> int:
        """How many inner steps the next round waits for."""
        return self.rounds.inner_steps(self.member.committed.round)

    async def take_steps(self, count: int, seed: int) -> None:
        """Inner steps on batches of its own."""
        for batch in batches(self.config, count, seed=seed):

            async def nothing() -> None:
                return

            self._steps += 1
            result = await self._stepper.run(batch, [self.hop], self._steps, 0, consumed=nothing)
            assert math.isfinite(result.loss)

    async def answer(self, call: IncomingCall) -> Message:
        if call.method == FetchContribution.method:
            AT.set(self.uid)
            self.passage("call.contribution")
        if call.method in (FetchContribution.method, DescribeState.method, FetchChunk.method):
            handlers = {FetchContribution: self.member.exchange.contribution, **self.donor.handlers}
            return await CallHandlers(self.uid, handlers).answer(call)
        return await super().answer(call)

    def step_ended(self, id: StepId, outcome: StepOutcome, samples: int, mark: str) -> None:
        if outcome == "applied":
            self.member.step_applied(samples)

    def round_ended(self, record: dict[str, Any]) -> None:
        self.ended.append(record)
        self.changed.set()

    async def rounds_ended(self, count: int) -> None:
        """So many rounds have ended for this replica, committed or not."""
        while len(self.ended) < count:
            self.changed.clear()
            await self.changed.wait()

    async def advanced(self) -> None:
        """A moment later: what its member and its compute thread had to do is done."""
        await self._compute(lambda: None)

    async def _compute(self, job: Callable[[], Any]) -> Any:
        return await self.compute.submit(Priority.CONTROL, "round", job)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.replica.module.state_dict().items()}


class RoundSwarm:
    """Replicas of one stage; rounds in lock step, one call each."""

    def __init__(self, config: Config, folder: Path, replicas: int = 3) -> None:
        self.config = config
        self.dead: set[str] = set()
        self._folder = folder
        self._count = replicas

    async def __aenter__(self) -> Self:
        self.network = MemoryNetwork()
        self.client = Convening(self.config, self.network, self._folder)
        await self.client.transport.serve(self.client.answer, self.client.gone)
        self.replicas: list[Replica] = []
        for _ in range(self._count):
            await self.add()
        return self

    async def add(self) -> Replica:
        """One more replica: the first founds the stage, the others join."""
        replica = Replica(self.config, self.network, len(self.replicas))
        self.replicas.append(replica)
        await (replica.join() if len(self.replicas) > 1 else replica.found(self.client))
        return replica

    async def __aexit__(self, *_: object) -> None:
        self.client.service.close()
        self.client.log.close()
        for replica in self.replicas:
            replica.running.cancel()
            await asyncio.gather(replica.running, return_exceptions=True)
            await replica.steps.close()
            replica.donor.close()
            replica.compute.stop()

    async def restart_client(self) -> None:
        """A client that has died starts again, from its log."""
        self.client.service.close()
        self.client.log.close()
        records = self.client.records
        self.client = Convening(self.config, self.network, self._folder)
        self.client.records.extend(records)
        await self.client.transport.serve(self.client.answer, self.client.gone)

    def kill(self, peer: str) -> None:
        self.dead.add(peer)
        self.network.kill(peer)
        self.replicas[int(peer.split(".")[2])].running.cancel()

    @property
    def living(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.uid not in self.dead]

    async def round(self, seed: int) -> list[dict[str, Any]]:
        """Inner steps everywhere and the round after them; what the living saw of it."""
        before = {replica.uid: len(replica.ended) for replica in self.replicas}
        await self.steps(seed)
        await asyncio.gather(*(self._ended(replica, before[replica.uid] + 1) for replica in self.living))
        return [replica.ended[-1] for replica in self.living]

    async def steps(self, seed: int) -> None:
        """The inner steps of one round, everywhere at once."""
        await asyncio.gather(
            *(r.take_steps(r.steps_due, seed=100 * seed + i) for i, r in enumerate(self.living))
        )

    async def agreed(self) -> None:
        """Wait until all hold what the log has; who was behind asks for it by itself."""
        while len({(r.member.committed.round, r.member.committed.digest) for r in self.living}) > 1:
            await asyncio.gather(*(replica.advanced() for replica in self.living))

    async def _ended(self, replica: Replica, count: int) -> None:
        """Its round has ended, or it died in it."""
        ended: asyncio.Future[None] = asyncio.ensure_future(replica.rounds_ended(count))
        await asyncio.wait({ended, replica.running}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        assert replica.uid in self.dead or not replica.running.done(), replica.running

    def check(self) -> None:
        """I1 and I3: all hold what the log has, to the bit."""
        logged = self.client.log.newest_round(STAGE)
        assert logged is not None, "no round is in the log"
        held = {
            replica.uid: (replica.member.committed.round, replica.member.committed.digest)
            for replica in self.living
        }
        assert held == dict.fromkeys(held, logged), (held, logged)
        for replica in self.living:
            assert all(
                bool(torch.isfinite(t).all()) for t in replica.weights().values() if t.is_floating_point()
            )
