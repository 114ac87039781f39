"""A process that forks writers: `FOLDER|FAILPOINTS` per line of its input; answers `pid P`, `ended STATUS`.

A writer goes on from the newest valid checkpoint and writes round after round, as a server does, until it is
killed; it says `wrote N` after each. Forked from a process that has loaded torch, it starts in milliseconds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.unit.checkpoint.states import DIGEST, RUN, moments, shard_state

from distqat import failpoints
from distqat.checkpoint import CheckpointStore, ShardState

EXPERT = "front.0.0.0"
SIZE = 20_000  # large enough that a write takes a while: 480 KB
STEPS = (0, 3)  # inner steps after the round at which it is written


def states(round: int) -> Iterator[ShardState]:
    """What is written of a round: once when it is committed, once some inner steps later."""
    for more in STEPS:
        step = 10 * round + more
        yield shard_state(round, size=SIZE, step=step, private={EXPERT: moments(step % 200)})


def write_until_killed(folder: Path, armed: str) -> None:
    os.environ[failpoints.ENVIRONMENT_VARIABLE] = armed
    failpoints._armed.cache_clear()
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
        folder, _, armed = line.rstrip("\n").rpartition("|")
        pid = os.fork()
        if pid == 0:
            try:
                write_until_killed(Path(folder), armed)
            finally:
                os._exit(3)
        os.write(1, f"pid {pid}\n".encode())
        os.write(1, f"ended {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())


if __name__ == "__main__":
    main()
