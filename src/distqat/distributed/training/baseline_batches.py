"""The two ends of the baseline: where its batches come from, and whom it tells of its steps."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from distqat.config import Config
from distqat.data.open_source import open_source
from distqat.data.serving.batch_client import DataClient
from distqat.data.serving.batch_server import DataServer
from distqat.distributed.assembly.first_batch import look_at
from distqat.distributed.assembly.held_out_batches import check_heldout
from distqat.distributed.assembly.run_notes import note_classes
from distqat.distributed.assembly.stage_factory import build_task
from distqat.distributed.assembly.vocabulary_check import check_tokenizer
from distqat.distributed.training.batch_source import BatchFeed
from distqat.distributed.training.rollout import RolloutFeed, check_play
from distqat.errors import SwarmError
from distqat.process import RoleParameters, host_id, runtime_dir
from distqat.protocol.call_schema import parse
from distqat.protocol.calls.slot_calls import ReportStep
from distqat.protocol.hop import PeerAddress
from distqat.swarm.call_messages import ask
from distqat.swarm.handshake import Admission
from distqat.swarm.transport import StreamTransport, UnixStreams

Answer = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
Report = Callable[[dict[str, Any]], Awaitable[None]]


@contextlib.asynccontextmanager
async def batch_feed(config: Config, answer: Answer, parameters: RoleParameters) -> AsyncIterator[BatchFeed]:
    """Batches of the data server, or what the model does in this process, where `answer` asks it."""
    task = build_task(config)
    if task.plays:

        async def ask(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            return await asyncio.to_thread(answer, inputs)

        await asyncio.to_thread(check_play, config, task)
        yield RolloutFeed(task, ask, seed=config.seed, pipeline=0)
        return
    options = config.diloco
    async with data_socket(config, parameters) as path:
        slots = options.gradient_accumulation_steps + 1
        data = await DataClient.connect(path, trainer="0", count=options.batch_size_per_step, slots=slots)
        try:
            yield data
        finally:
            await data.close()


@contextlib.asynccontextmanager
async def data_socket(config: Config, parameters: RoleParameters) -> AsyncIterator[Path]:
    """The socket of the client's data server, or of one of our own when there is no client."""
    if parameters.data_socket:
        yield parameters.data_socket_path
        return
    path = runtime_dir() / f"data-{os.getpid()}.sock"
    source = await asyncio.to_thread(open_source, config.data, seed=config.seed)
    check_tokenizer(config)
    note_classes(config, source)
    task = build_task(config)
    await asyncio.to_thread(check_heldout, config, task, source)
    server = DataServer(source, task, workers=config.data.num_workers)
    first = await server.first_batch(config.diloco.batch_size_per_step)
    await asyncio.to_thread(look_at, config, task, source, first)
    await server.start(path)
    try:
        yield path
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def reports_to_client(config: Config, client: str) -> AsyncIterator[Report]:
    """Tell the client of this host, a peer id, after each step; "": there is none."""

    async def nobody(record: dict[str, Any]) -> None:
        return

    if not client:
        yield nobody
        return
    own = f"baseline-{os.getpid()}"
    admission = Admission.of_environment(config.experiment_prefix, own)
    transport = StreamTransport(admission, [UnixStreams(runtime_dir(), own, host_id())])

    async def report(record: dict[str, Any]) -> None:
        with contextlib.suppress(SwarmError):
            link = await transport.link(PeerAddress(client, host_id()))
            await ask(link, parse(ReportStep, record), timeout=5.0)

    try:
        yield report
    finally:
        await transport.close()
