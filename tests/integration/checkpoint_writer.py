"""A process that forks writers: `shards|FOLDER|FAILPOINTS` or `parts|...` per line of its input.

It answers `pid P` and `ended STATUS`. A writer of shards goes on from the newest valid checkpoint and writes
round after round, as a server does, until it is killed; a writer of parts writes those of a trainer. They say
`wrote N` after each. Forked from a process that has loaded torch, they start in milliseconds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.unit.checkpoint.states import DIGEST, RUN, moments, shard_state, trainer_part

from distqat import failpoints
from distqat.checkpoint import CheckpointStore, ShardState, write_trainer_part

EXPERT = "front.0.0.0"
SIZE = 20_000  # large enough that a write takes a while: 480 KB
STEPS = (0, 3, 5, 7)  # inner steps after the round at which it is written
MARKED = (3, 7)


def states(round: int) -> Iterator[ShardState]:
    """What is written of a round: once when it is committed, then some inner steps later, marked or not."""
    for more in STEPS:
        step = 10 * round + more
        mark = mark_of(step) if more in MARKED else None
        yield shard_state(round, size=SIZE, step=step, mark=mark, private={EXPERT: moments(step % 200)})


def mark_of(step: int) -> str:
    """The name of a checkpoint step."""
    return f"0-7-{step:06d}"


def write_parts_until_killed(folder: Path) -> None:
    step = 1
    while True:
        write_trainer_part(folder, trainer_part(step), keep=2)
        os.write(1, f"wrote {step}\n".encode())
        step += 1


def write_shards_until_killed(folder: Path) -> None:
    store = CheckpointStore(folder, RUN)
    found = store.newest_valid("front", DIGEST)
    round = 0 if found is None else found.manifest.round + 1
    while True:
        for state in states(round):
            store.write("front", state)
            os.write(1, f"wrote {state.step}\n".encode())
        store.prune()
        round += 1


def main() -> None:
    for line in sys.stdin:
        what, folder, armed = line.rstrip("\n").split("|")
        pid = os.fork()
        if pid == 0:
            try:
                os.environ[failpoints.ENVIRONMENT_VARIABLE] = armed
                failpoints._armed.cache_clear()
                {"shards": write_shards_until_killed, "parts": write_parts_until_killed}[what](Path(folder))
            finally:
                os._exit(3)
        os.write(1, f"pid {pid}\n".encode())
        os.write(1, f"ended {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())


if __name__ == "__main__":
    main()
