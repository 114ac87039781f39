"""The parameter mirror: a copy of every stage on the client's host, for joiners when no replica is left."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from distqat.checkpoint import LoadedShard, ShardState
from distqat.checkpoint.manifest import SHARED
from distqat.checkpoint.tensor_file import check_file
from distqat.config import Config, structure, structure_digest
from distqat.distributed.coordination.commit_log import CommitLog
from distqat.distributed.coordination.fetch_committed import fetch_committed
from distqat.distributed.coordination.round_service import RoundService
from distqat.distributed.serving.checkpoint_loop import store_of
from distqat.distributed.serving.committed_state import CommittedState
from distqat.distributed.transfer.donor import DonatedState, Donor, upload_bucket
from distqat.distributed.transfer.snapshot_exchange import FetchedState
from distqat.errors import CheckpointError, Refused, StageUnavailable
from distqat.failures import describe
from distqat.process import notice
from distqat.protocol.calls.slot_calls import LiveState
from distqat.protocol.calls.transfer_calls import DescribeState, FetchChunk
from distqat.swarm.incoming_call import IncomingCall
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import Transport

logger = logging.getLogger(__name__)

SETTLE_S = 1.0  # servers of this host write a round themselves; then nothing has to be fetched
WINDOW = 1  # chunks in flight: joiners, and training, go first


class ParameterMirror:
    """Copies of the committed states, in the checkpoint folder of the client's host.

    A copy that cannot be had, or not be written, is one warning: training goes on.
    """

    def __init__(self, config: Config, log: CommitLog, rounds: RoundService, transport: Transport) -> None:
        self._config = config
        self._options = config.param_mirror
        self._log = log
        self._rounds = rounds
        self._transport = transport
        self._store = store_of(config)
        self._seen: dict[
            str, tuple[int, str]
        ] = {}  # by stage what was the newest when a copy was made sure of
        self._warned: set[str] = set()
        self.trouble = ""
        """Why copies cannot be written at the moment; "" while they can."""
        bucket = upload_bucket(self._options.upload_rate)
        self._donors = {stage: Donor(self._holder(stage), None, bucket) for stage in config.stages}

    async def run(self) -> None:
        """Until cancelled: one stage after the other, at most every `refresh_every` seconds."""
        while self._options.enable:
            await asyncio.sleep(self._options.refresh_every)
            for stage in self._config.stages:
                try:
                    await self.refresh(stage)
                    self._warned.discard(stage)
                    self.trouble = self.trouble if self._warned else ""
                except Exception as error:  # noqa: BLE001  whatever a copy meets, training goes on
                    if stage not in self._warned:  # once: what is in the way stays there for a while
                        notice(f"no new copy of stage {stage}: {describe(error)}; training goes on")
                    self._warned.add(stage)
                    self.trouble = describe(error) if isinstance(error, CheckpointError) else self.trouble

    async def refresh(self, stage: str) -> None:
        """Copy the newest round of a stage, unless servers of this host write it to the same folder.

        They do if one is there that was committed since the last time. Raises SwarmError, CheckpointError.
        """
        newest, seen = self._rounds.round_of(stage), self._seen.get(stage)
        if newest is None or newest == seen:
            return
        fresh = newest[0] if seen is None else min(newest[0], seen[0] + 1)
        if not await asyncio.to_thread(self._stands, stage, fresh):
            await asyncio.sleep(SETTLE_S)
            if not await asyncio.to_thread(self._stands, stage, fresh):
                newest = await self._copy(stage)
        self._seen[stage] = newest

    async def newest(self, stage: str, oldest: int) -> LiveState | None:
        """What can be had from here of generation `oldest` or later."""
        shard = await asyncio.to_thread(self._load, stage) if self._options.enable else None
        if shard is None or shard.manifest.generation < oldest:
            return None
        manifest = shard.manifest
        return LiveState(manifest.generation, manifest.round, manifest.digest)

    async def describe(self, request: DescribeState, call: IncomingCall) -> Message:
        """As a replica does it, of the copy of a stage."""
        return await self._donor(request.stage).describe(request, call)

    async def chunk(self, request: FetchChunk, call: IncomingCall) -> Message:
        """As a replica does it, of the copy of a stage."""
        return await self._donor(request.stage).chunk(request, call)

    def _donor(self, stage: str) -> Donor:
        if stage not in self._donors or not self._options.enable:
            raise Refused("the client keeps no copy of this stage (param_mirror.enable)")
        return self._donors[stage]

    def close(self) -> None:
        """Let go what is being read."""
        for donor in self._donors.values():
            donor.close()

    # inside

    async def _copy(self, stage: str) -> tuple[int, str]:
        began = time.monotonic()
        got = await fetch_committed(self._transport, self._rounds, stage, window=WINDOW)
        await asyncio.to_thread(self._write, stage, got)
        nbytes = sum(tensor.nbytes for tensor in got.shared.tensors().values())
        logger.info(
            "mirrored round %d of %s, %.1f MB, in %.2f s from %s",
            got.shared.round,
            stage,
            nbytes / 1e6,
            time.monotonic() - began,
            ", ".join(got.givers),
        )
        return got.shared.round, got.shared.digest

    def _stands(self, stage: str, fresh: int) -> bool:
        """Whether round `fresh` or a later one is on disk as it was committed, to the byte."""
        for entry in reversed(self._store.rounds()):
            manifest = entry.manifests.get(stage)
            if manifest is None or manifest.run != self._config.experiment_prefix or entry.round < fresh:
                continue
            if self._log.digest(stage, entry.round) != manifest.digest:
                continue  # of another run, or of a history that was given up
            try:
                check_file(entry.path / stage / SHARED, manifest.files[SHARED])
                return True
            except CheckpointError as error:
                logger.info("%s", error)
        return False

    def _write(self, stage: str, got: FetchedState) -> None:
        shared = got.shared
        state = ShardState(
            generation=self._log.generation,
            round=shared.round,
            step=got.step,
            digest=shared.digest,
            shared=shared.tensors(),
            agreement=structure(self._config, stage),
            agreement_digest=structure_digest(self._config, stage),
            counters={"step": got.step},
        )
        self._store.write(stage, state)
        self._store.prune()

    def _load(self, stage: str) -> LoadedShard | None:
        """The newest that is valid; private parts are not read."""
        digest, agreement = structure_digest(self._config, stage), structure(self._config, stage)
        return self._store.newest_valid(stage, digest, agreement=agreement, expert="")

    def _holder(self, stage: str) -> Any:
        async def held(round: int) -> DonatedState:
            shard = await asyncio.to_thread(self._load, stage)
            if shard is None:
                raise StageUnavailable(f"the client has no copy of stage {stage}")
            return DonatedState(
                CommittedState.from_tensors(shard.manifest.round, shard.shared, {}), shard.manifest.step
            )

        return held
