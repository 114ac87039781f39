"""Figure 5: SIGKILL at random times while checkpoints are written; every restart must load."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.failover_scene import Counts, Figure, Row
from benchmarks.failover_writer import DIGEST, EXPERT, RUN, STAGE, moments, shared
from benchmarks.report import ROOT
from distqat.checkpoint import CheckpointStore, verify
from distqat.errors import RoleError
from distqat.launch.warm_processes import WarmForkServers

LATEST_S = 0.25  # a writer is killed anywhere in so many seconds: some writes


async def checkpoints(figure: Figure, fork_servers: WarmForkServers, counts: Counts) -> None:
    """Kill writer after writer; each goes on from what the one before has left."""
    rng, outcome = random.Random(counts.seed), dict.fromkeys(("kills", "loaded", "torn", "left"), 0)
    figure.raw["outcome"] = outcome
    with tempfile.TemporaryDirectory(prefix="distqat-bench-") as given:
        folder = Path(given) / "run"
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-m", "benchmarks.failover_writer")
        writers = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=ROOT)
        try:
            acknowledged = -1
            for _ in range(counts.checkpoint_kills):
                acknowledged = max(acknowledged, await _kill_one(writers, folder, rng))
                _restart(folder, acknowledged, outcome)
                _tell(figure, outcome)
        finally:
            assert writers.stdin is not None
            writers.stdin.close()
            await writers.wait()
        problems = [problem for report in verify(folder) for problem in report.problems]
        figure.rows.append(
            Row("problems that `checkpoint verify` finds", "0", str(len(problems)), not problems)
        )
        figure.changed()


async def _kill_one(writers: asyncio.subprocess.Process, folder: Path, rng: random.Random) -> int:
    """The last round that the killed writer said was written; -1: none."""
    assert writers.stdin is not None
    assert writers.stdout is not None
    writers.stdin.write(f"{folder}\n".encode())
    await writers.stdin.drain()
    wrote = -1
    async for line in writers.stdout:
        word, value = line.decode().split()
        if word == "pid":
            asyncio.get_running_loop().call_later(
                rng.uniform(0.0, LATEST_S), os.kill, int(value), signal.SIGKILL
            )
        elif word == "wrote":
            wrote = int(value)
        else:
            assert int(value) == -signal.SIGKILL, f"a writer ended by itself, with {value}"
            return wrote
    raise RoleError("the process that forks writers has ended")


def _restart(folder: Path, acknowledged: int, outcome: dict[str, int]) -> None:
    """What a restart does: sweep, load the newest valid one; it must be all that was said to be written."""
    outcome["kills"] += 1
    store = CheckpointStore(folder, RUN)
    outcome["torn"] += bool(_temporary(folder))
    store.prune()
    outcome["left"] += len(_temporary(folder))
    found = store.newest_valid(STAGE, DIGEST, expert=EXPERT)
    if found is None:
        outcome["loaded"] += acknowledged == -1  # killed before the first was written
        return
    round = found.manifest.round
    same = _same(found.shared, shared(round)) and _same(found.private[EXPERT], moments(round))
    outcome["loaded"] += same and round >= acknowledged


def _temporary(folder: Path) -> list[Path]:
    """Whatever is neither a tensor file nor a manifest."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    odd = [path for path in files if path.suffix not in (".safetensors", ".json")]
    return [*odd, *folder.rglob(".*")]


def _same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def _tell(figure: Figure, outcome: dict[str, int]) -> None:
    kills = outcome["kills"]
    figure.rows = [
        Row(
            f"restarts that load, {kills} kills",
            f"{kills} of {kills}",
            str(outcome["loaded"]),
            outcome["loaded"] == kills,
        ),
        Row("kills that fell into a write (a temporary file was there)", "", str(outcome["torn"])),
        Row("temporary files left after a restart", "0", str(outcome["left"]), outcome["left"] == 0),
    ]
    if kills % 20 == 0:
        figure.changed()
