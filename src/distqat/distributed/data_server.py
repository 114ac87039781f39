"""The data server: reads the data set once per host and hands batches to trainers in shared memory."""

from __future__ import annotations

from distqat.terminal import begin, leave

if __name__ == "__main__":  # before all else: what follows imports torch
    begin("data-server", clean=False)

import asyncio
import json
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from distqat.config import Config, ConfigParser, add_config_arguments, config_from_args
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
from distqat.errors import ConfigError, DataError, DistqatError, ModelError, TaskError
from distqat.process import (
    announce_ready,
    notice,
    run_role,
    runtime_dir,
    set_title,
    set_up_logging,
)
from distqat.swarm.deadline import within
from distqat.tasks.base import Batch, Task

logger = logging.getLogger(__name__)

DATA_SOCKET = "DISTQAT_DATA_SOCKET"
DATA_POSITION = "DISTQAT_DATA_POSITION"
OPEN_S = 110.0  # for the first batch; the client waits a little longer


def socket_path() -> Path:
    """Where the data server of this environment listens."""
    given = os.environ.get(DATA_SOCKET)
    return Path(given) if given else runtime_dir() / "data.sock"


async def serve(config: Config, stop: asyncio.Event) -> int:
    """Serve until asked to stop. Raises ConfigError when the data cannot be read as configured."""
    try:
        task = build_task(config)
        server, source, first = await within(_open(config, task), OPEN_S)
        batch = _told(config, task, first)
    except (DataError, ModelError, TaskError) as error:  # it was tried again and again; a restart cannot help
        raise ConfigError(str(error)) from error
    except asyncio.TimeoutError as error:
        raise ConfigError(
            f"data set {config.data.dataset_name!r} gave no batch within {OPEN_S:g} s: check the network (or "
            "the disk), lower data.shuffle_buffer, or train on 'digits' (images) or 'python_docs' (text)"
        ) from error
    await server.start(socket_path())
    account = account_of(source)
    line = account.get("line", "it does not say what it leaves out")
    logger.info("serving %s in batches over %s; %s", config.data.dataset_name, socket_path(), line)
    announce_ready({"role": "data-server", "socket": str(socket_path()), "batch": batch})
    if leaves_out(account):
        notice(f"data {config.data.dataset_name}: {line}")
    await asyncio.to_thread(look_at, config, task, source, first)
    try:
        await stop.wait()
        return 0
    finally:
        await server.stop()


async def _open(config: Config, task: Task) -> tuple[DataServer, Source, Batch]:
    """The server where the run goes on, and its first batch: a column that is missing is found here.

    So is a held-out part that could judge nothing.
    """
    loop, thread = asyncio.get_running_loop(), DaemonThreads(1, name="distqat-open")
    source = await loop.run_in_executor(thread, partial(open_source, config.data, seed=config.seed))
    check_tokenizer(config)  # of the hub, it is here now
    note_classes(config, source)
    unfit = await loop.run_in_executor(thread, heldout_problem, config, task, source)
    server = DataServer(source, task, workers=config.data.num_workers)
    position = os.environ.get(DATA_POSITION)
    if position:
        try:
            await loop.run_in_executor(thread, server.restore, json.loads(position))
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
    parser = ConfigParser(
        "distqat data-server", description="Hand out the data set to trainers of this host."
    )
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    set_title("data-server", argv)

    async def role(stop: asyncio.Event) -> int:
        config = config_from_args(args)
        set_up_logging("data-server", config.log_level if "log_level" in config.model_fields_set else None)
        return await serve(config, stop)

    return run_role("data-server", role)


if __name__ == "__main__":
    leave(main())
