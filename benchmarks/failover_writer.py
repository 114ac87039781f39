"""Forks writers of checkpoints: `FOLDER` per line of input; answers `pid P`, then `wrote ROUND` ..., `ended`.

A writer goes on from the newest valid checkpoint, as a restarted server does, and writes round after round
until it is killed. Forked from a process that has loaded torch, it starts in milliseconds.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distqat.checkpoint import CheckpointStore, ShardState
from distqat.diloco.tensor_digest import state_digest

RUN, STAGE, EXPERT, DIGEST = "kills", "front", "front.0.0.0", "a" * 64
SIZE = 60_000  # numbers in a tensor: a write takes some milliseconds


def shared(round: int) -> dict[str, Tensor]:
    """The committed state of a round, the same whenever it is asked for."""
    generator = torch.Generator().manual_seed(1000 + round)
    names = ("anchor/front.weight", "outer/momentum/front.weight")
    return {name: torch.randn(SIZE, generator=generator) for name in names}


def moments(round: int) -> dict[str, Tensor]:
    """What only one replica has."""
    generator = torch.Generator().manual_seed(9000 + round)
    return {"front.weight/exp_avg": torch.randn(SIZE, generator=generator)}


def state(round: int) -> ShardState:
    tensors = shared(round)
    agreement = {"run": RUN, "stages": [STAGE]}
    private = {EXPERT: moments(round)}
    return ShardState(0, round, round, state_digest(tensors), tensors, agreement, DIGEST, private=private)


def write_until_killed(folder: Path) -> None:
    store = CheckpointStore(folder, RUN)
    found = store.newest_valid(STAGE, DIGEST)
    round = 0 if found is None else found.manifest.round + 1
    while True:
        store.write(STAGE, state(round))
        os.write(1, f"wrote {round}\n".encode())
        store.prune()
        round += 1


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                write_until_killed(Path(line.rstrip("\n")))
            finally:
                os._exit(3)
        os.write(1, f"pid {pid}\n".encode())
        os.write(1, f"ended {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())


if __name__ == "__main__":
    main()
