"""The client's copy of the stages: what it fetches, what it leaves to servers of its host, what it serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes.direct_calls import from_peer, hop_of
from tests.fakes.memory_transport import MemoryNetwork, MemoryTransport

from distqat.checkpoint import ShardState
from distqat.config import Config, structure, structure_digest
from distqat.diloco.outer_optimizer import OuterState
from distqat.distributed.coordination import parameter_mirror as module
from distqat.distributed.coordination.commit_log import CommitLog
from distqat.distributed.coordination.parameter_mirror import ParameterMirror
from distqat.distributed.coordination.round_service import RoundService
from distqat.distributed.serving.checkpoint_loop import store_of
from distqat.distributed.serving.committed_state import CommittedState
from distqat.distributed.transfer.donor import DonatedState, Donor, upload_bucket
from distqat.distributed.transfer.snapshot_exchange import fetch_mirrored
from distqat.errors import StageUnavailable
from distqat.protocol.calls.round_calls import FoundStage, JoinStage
from distqat.protocol.calls.slot_calls import Mirrored
from distqat.protocol.calls.transfer_calls import DescribeState, FetchChunk
from distqat.protocol.hop import Hop, PeerAddress
from distqat.swarm.call_channel import IncomingCall
from distqat.swarm.call_messages import CallHandlers
from distqat.swarm.tensor_frame import Message

STAGE, UID = "full", "full.0.0.0"


def state(round: int) -> CommittedState:
    anchor = {"weight": torch.full((1000,), float(round))}
    return CommittedState(round, anchor, OuterState(), {}, {"count": torch.tensor(round)})


def config(folder: Path, **mirror: Any) -> Config:
    return Config.model_validate(
        {
            "experiment_prefix": "mirrored",
            "param_mirror": {"checkpoint_dir": str(folder / "client"), "refresh_every": 0.01, **mirror},
            "model_pipeline": {"pipeline": [{"model_name": "mlp.full", "num_classes": 10}]},
        }
    )


class Scene:
    """A client with its log and rounds, and one server that holds what was committed."""

    def __init__(self, folder: Path, **mirror: Any) -> None:
        self.config = config(folder, **mirror)
        self.network = MemoryNetwork()
        self.log = CommitLog(folder / "log.jsonl", "mirrored")
        self.rounds = RoundService([STAGE], self.config.diloco, self.log, lambda record: None, hop_of)
        self.transport = MemoryTransport(self.network, "client")
        self.mirror = ParameterMirror(self.config, self.log, self.rounds, self.transport)
        self.server = MemoryTransport(self.network, UID)
        self.shared = state(0)
        self.donor = Donor(self._held, None, upload_bucket(None))
        self.calls: list[str] = []

    async def begin(self) -> None:
        mirror = {DescribeState: self.mirror.describe, FetchChunk: self.mirror.chunk}
        await self.transport.serve(CallHandlers("the client", mirror).answer)
        await self.server.serve(self._answer)
        await self.rounds.found(FoundStage(STAGE, UID, self.shared.digest), from_peer(UID))
        await self.rounds.join(JoinStage(STAGE, hop_of(UID), 0), from_peer(UID))

    async def _held(self, round: int) -> DonatedState:
        return DonatedState(self.shared, 10 * self.shared.round)

    async def _answer(self, call: IncomingCall) -> Message:
        self.calls.append(call.method)
        return await CallHandlers("a server", self.donor.handlers).answer(call)

    def commit(self) -> CommittedState:
        """The next round."""
        self.shared = state(self.shared.round + 1)
        self.log.commit_round(STAGE, self.shared.round, self.shared.digest)
        return self.shared

    def write(self, shared: CommittedState, generation: int) -> Path:
        """As a server of the client's host does."""
        agreed = {
            "agreement": structure(self.config, STAGE),
            "agreement_digest": structure_digest(self.config, STAGE),
        }
        written = ShardState(
            generation=generation,
            round=shared.round,
            step=7,
            digest=shared.digest,
            shared=shared.tensors(),
            counters={},
            **agreed,
        )
        return store_of(self.config).write(STAGE, written)

    async def newest_round(self) -> int | None:
        copy = await self.mirror.newest(STAGE, 0)
        return copy and copy.round

    async def fetched(self, newer_than: tuple[int, int] = (-1, -1)) -> CommittedState | None:
        """What a server without any disk gets from the mirror."""
        told = await self.mirror.newest(STAGE, self.log.first_generation)
        mirror = Hop("mirror.0.0.0", PeerAddress("client"))
        copy = told and Mirrored(told.generation, told.round, told.digest, mirror)
        joiner = MemoryTransport(self.network, "joiner")
        got = await fetch_mirrored(joiner, STAGE, copy, newer_than)
        await joiner.close()
        return got and got.shared


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_S", 0.0)


@pytest.fixture
async def scene(tmp_path: Path, quick: None) -> AsyncIterator[Scene]:
    made = Scene(tmp_path)
    await made.begin()
    yield made
    made.mirror.close()
    made.donor.close()
    made.rounds.close()
    made.log.close()


async def test_a_copy_is_fetched_once_per_round_and_served(scene: Scene) -> None:
    committed = scene.commit()
    await scene.mirror.refresh(STAGE)
    assert scene.calls.count("snapshot") == 1
    await scene.mirror.refresh(STAGE)
    assert scene.calls.count("snapshot") == 1, "nothing is new"
    (entry,) = store_of(scene.config).rounds()
    manifest = entry.manifests[STAGE]
    assert (entry.generation, entry.round, manifest.digest) == (scene.log.generation, 1, committed.digest)
    assert (manifest.step, list(manifest.private)) == (10, [])
    scene.network.kill(UID)
    got = await scene.fetched()
    assert got is not None
    assert got.digest == committed.digest


async def test_what_servers_of_the_host_have_written_is_not_fetched(scene: Scene) -> None:
    scene.write(scene.commit(), scene.log.generation)
    await scene.mirror.refresh(STAGE)
    assert scene.calls == []
    assert await scene.newest_round() == 1


async def test_servers_of_the_host_that_write_only_some_rounds_are_enough(scene: Scene) -> None:
    scene.write(scene.commit(), scene.log.generation)
    await scene.mirror.refresh(STAGE)
    scene.write(scene.commit(), scene.log.generation)
    scene.commit()  # this one is not on disk yet
    await scene.mirror.refresh(STAGE)
    assert scene.calls == []
    scene.commit()
    await scene.mirror.refresh(STAGE)
    assert "snapshot" in scene.calls, "nobody has written since the last time"
    assert await scene.newest_round() == 4


async def test_a_broken_copy_is_fetched_again(scene: Scene) -> None:
    folder = scene.write(scene.commit(), scene.log.generation)
    file = folder / "shared.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert await scene.mirror.newest(STAGE, 0) is None
    await scene.mirror.refresh(STAGE)
    assert "snapshot" in scene.calls
    assert await scene.newest_round() == 1


async def test_only_what_is_newer_than_the_servers_disk_is_taken(scene: Scene) -> None:
    scene.commit()
    await scene.mirror.refresh(STAGE)
    generation = scene.log.generation
    assert await scene.fetched((generation, 0)) is not None
    assert await scene.fetched((generation, 1)) is None
    assert await scene.fetched((generation + 1, 0)) is None
    assert await scene.mirror.newest(STAGE, generation + 1) is None, "of an older run"


async def test_donors_that_are_further_are_asked_for_the_newest(scene: Scene) -> None:
    first = scene.commit()
    held, scene.donor._held = scene.donor._held, None  # type: ignore[assignment]

    async def advancing(round: int) -> DonatedState:
        if scene.shared is first:
            scene.commit()
        return await held(round)

    scene.donor._held = advancing
    await scene.mirror.refresh(STAGE)
    assert await scene.newest_round() == 2


async def test_what_goes_wrong_is_one_warning(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger=module.logger.name)
    scene.commit()
    scene.network.kill(UID)
    looked, changed = 0, asyncio.Event()
    refresh = scene.mirror.refresh

    async def counted(stage: str) -> None:
        nonlocal looked
        looked += 1
        changed.set()
        await refresh(stage)

    scene.mirror.refresh = counted  # type: ignore[method-assign]
    running = asyncio.ensure_future(scene.mirror.run())
    while looked < 4:
        await asyncio.wait_for(changed.wait(), 10)
        changed.clear()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    (warning,) = caplog.messages
    assert warning.startswith(f"no new copy of stage {STAGE}: no replica gave the state of round 1")


async def test_a_disk_that_takes_nothing_is_an_error_that_says_so(scene: Scene, tmp_path: Path) -> None:
    scene.commit()
    (tmp_path / "client").touch()  # no folder can be made there
    with pytest.raises(module.CheckpointError, match="could not be written"):
        await scene.mirror.refresh(STAGE)


async def test_switched_off_it_neither_copies_nor_serves(tmp_path: Path, quick: None) -> None:
    scene = Scene(tmp_path, enable=False)
    await scene.begin()
    scene.write(scene.commit(), scene.log.generation)
    await asyncio.wait_for(scene.mirror.run(), 5)
    assert scene.calls == []
    assert await scene.mirror.newest(STAGE, 0) is None
    link = await scene.server.link(PeerAddress("client"))
    with pytest.raises(module.Refused, match=r"param_mirror\.enable"):
        await link.call("snapshot", Message({"stage": STAGE, "round": 1, "digest": ""}), timeout=5)
    scene.rounds.close()
    scene.log.close()


async def test_a_stage_that_it_does_not_have(scene: Scene) -> None:
    link = await scene.server.link(PeerAddress("client"))
    fields = {"round": 0, "digest": scene.shared.digest}
    with pytest.raises(StageUnavailable, match="no copy of stage full"):
        await link.call("snapshot", Message({**fields, "stage": STAGE}), timeout=5)
    with pytest.raises(module.Refused):
        await link.call("snapshot", Message({**fields, "stage": "other"}), timeout=5)
