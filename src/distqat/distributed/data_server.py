"""The data server: reads the data set once per host and hands batches to trainers in shared memory."""

from __future__ import annotations

from distqat.terminal import begin, leave

if __name__ == "__main__":  # before all else: what follows imports torch
    begin("data-server", clean=False)

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from distqat.config import Config
from distqat.data.open_source import open_source
from distqat.data.reading_errors import told
from distqat.data.rows import account_of, leaves_out
from distqat.data.serving.batch_server import DataServer
from distqat.data.serving.daemon_threads import DaemonThreads
from distqat.data.source import Source
from distqat.distributed.assembly.first_batch import look_at
from distqat.distributed.assembly.held_out_batches import heldout_problem
from distqat.distributed.assembly.model_check import Told, tell
from distqat.distributed.assembly.run_notes import note_classes
from distqat.distributed.assembly.stage_factory import build_task
from distqat.distributed.assembly.vocabulary_check import check_tokenizer
from distqat.distributed.role_main import RoleStart, run_role_main
from distqat.errors import ConfigError, DataError, DistqatError, ModelError, TaskError
from distqat.process import announce_ready, notice
from distqat.swarm.deadline import within
from distqat.tasks.base import Batch, Task

logger = logging.getLogger(__name__)

OPEN_S = 110.0  # for the first batch; the client waits a little longer


async def serve(start: RoleStart, stop: asyncio.Event) -> int:
    """Serve until asked to stop. Raises ConfigError when the data cannot be read as configured."""
    config, socket = start.config, start.parameters.data_socket_path
    try:
        task = build_task(config)
        server, source, first = await within(_open(config, task, start.parameters.data_position), OPEN_S)
        batch = _told(config, task, first)
    except (DataError, ModelError, TaskError) as error:  # it was tried again and again; a restart cannot help
        raise ConfigError(str(error)) from error
    except asyncio.TimeoutError as error:
        raise ConfigError(
            f"data set {config.data.dataset_name!r} gave no batch within {OPEN_S:g} s: check the network (or "
            "the disk), lower data.shuffle_buffer, or train on 'digits' (images) or 'python_docs' (text)"
        ) from error
    await server.start(socket)
    account = account_of(source)
    line = account.get("line", "it does not say what it leaves out")
    logger.info("serving %s in batches over %s; %s", config.data.dataset_name, socket, line)
    announce_ready({"role": "data-server", "socket": str(socket), "batch": batch})
    if leaves_out(account):
        notice(f"data {config.data.dataset_name}: {line}")
    await asyncio.to_thread(look_at, config, task, source, first)
    try:
        await stop.wait()
        return 0
    finally:
        await server.stop()


async def _open(
    config: Config, task: Task, position: Mapping[str, Any] | None
) -> tuple[DataServer, Source, Batch]:
    """The server, from `position` in the data on, and its first batch: a missing column is found here.

    So is a held-out part that could judge nothing.
    """
    loop, thread = asyncio.get_running_loop(), DaemonThreads(1, name="distqat-open")
    source = await loop.run_in_executor(thread, partial(open_source, config.data, seed=config.seed))
    check_tokenizer(config)  # of the hub, it is here now
    note_classes(config, source)
    unfit = await loop.run_in_executor(thread, heldout_problem, config, task, source)
    server = DataServer(source, task, workers=config.data.num_workers)
    if position is not None:
        try:
            await loop.run_in_executor(thread, server.restore, position)
        except DataError as error:  # other data, or another order: a position in it means nothing
            logger.warning("the data set is read from its beginning: %s", error)
    thread.shutdown(wait=False)
    first = await server.first_batch(config.diloco.batch_size_per_step)
    if unfit is not None:
        raise unfit
    return server, source, first


def _told(config: Config, task: Task, first: Batch) -> Told:
    """What the client hears of the first batch. Raises TaskError: a task of a plugin may raise anything."""
    try:
        return tell(task, first)
    except DistqatError:
        raise
    except Exception as error:
        raise TaskError(
            f"the task {config.data.task_type!r} cannot begin a step of the first samples of "
            f"{config.data.dataset_name!r}: {told(error)}"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: stopped in order; 2: refused, or the data cannot be read."""
    return run_role_main("data-server", "Hand out the data set to trainers of this host.", serve, argv)


if __name__ == "__main__":
    leave(main())
