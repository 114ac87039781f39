"""Figure 6: what is left of a role two seconds after it was killed, of every role."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.failover_scene import BOUND_S, CONFIG, Counts, Figure, Row, Scene, running
from benchmarks.report import ROOT
from distqat.errors import RoleError
from distqat.launch.process_survey import RUNTIME, family, lives, marked, told
from distqat.launch.warm_processes import WarmForkServers

AFTER_S = 2.0
ROLES = ("monitor", "client", "trainer", "data-server", "server", "launcher")
TOGETHER = (
    ("server", "trainer"),
    ("monitor", "data-server"),
    ("client",),
)  # killed at one moment, judged apart
START_S = 8.0  # a launcher is killed anywhere in so many seconds after its first server


async def orphans(figure: Figure, fork_servers: WarmForkServers, counts: Counts) -> None:
    """Kill roles of a swarm that heals itself, and whole launchers."""
    kills, left = dict.fromkeys(ROLES, 0), dict.fromkeys(ROLES, 0)
    figure.raw |= {"kills": kills, "orphans": left, "which": []}
    async with running(fork_servers, counts.seed, "orphans", {}) as scene:
        for number in range(counts.role_kills):
            for roles in TOGETHER:
                for role, found in (await _kill(scene, roles)).items():
                    _count(figure, role, found)
            await _heals(scene)
            figure.say(f"round {number + 1} of kills: {sum(left.values())} orphans so far")
    rng = random.Random(counts.seed)
    for _ in range(counts.role_kills):
        _count(figure, "launcher", await _kill_a_launcher(rng))
        figure.say(f"launcher {kills['launcher']}: {left['launcher']} orphans so far")


def _count(figure: Figure, role: str, found: list[str]) -> None:
    kills, left = figure.raw["kills"], figure.raw["orphans"]
    kills[role] += 1
    left[role] += len(found)
    figure.raw["which"] += [f"{role}: {each}" for each in found]
    figure.rows = [
        Row(f"orphans of {each}, {kills[each]} kills", "0", str(left[each]), left[each] == 0)
        for each in ROLES
        if kills[each]
    ]
    figure.changed()


async def _kill(scene: Scene, roles: tuple[str, ...]) -> dict[str, list[str]]:
    """Kill one of each of these roles; by role, what was below it and lives two seconds later."""
    below: dict[str, list[psutil.Process]] = {}
    for role in roles:
        pid = await scene.until(f"a {role}", lambda role=role: _find(scene, role))
        below[role] = family(pid)
        replica = next((each for each in scene.swarm.replicas if each.role.pid == pid), None)
        if replica is not None:
            scene.swarm.kill(replica)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(AFTER_S)
    return {role: [told(each) for each in processes if lives(each)] for role, processes in below.items()}


def _find(scene: Scene, role: str) -> int | None:
    """The PID of a role that runs now, of several at random."""
    swarm = scene.swarm
    if role in ("monitor", "client"):
        return swarm.pid_of(role)
    if role == "server":
        there = [replica.role.pid for replica in swarm.serving()]
    else:
        there = _titled(os.getpid(), role)
    return scene.rng.choice(sorted(there)) if there else None


def _titled(ancestor: int, role: str) -> list[int]:
    """Processes below an ancestor whose title says this role; fork servers bear titles of their owners."""
    pattern, found = re.compile(rf"distqat {role}(?= |$)"), []
    for process in family(ancestor)[1:]:
        try:
            words = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if pattern.match(words) and "forkserver" not in words:
            found.append(process.pid)
    return found


async def _heals(scene: Scene) -> None:
    """Replace the dead server; both trainers of the new client train."""
    await scene.add()
    since = time.time()
    await scene.until(
        "both trainers train",
        lambda: len({int(step["pipeline"]) for step in scene.watch.steps if step["time"] > since}) == 2,
    )


async def _kill_a_launcher(rng: random.Random) -> list[str]:
    """Kill run_local.py at some moment after it has started a server; what is left of its run."""
    with tempfile.TemporaryDirectory(prefix="distqat-", ignore_cleanup_errors=True) as folder:
        quiet = asyncio.subprocess.DEVNULL
        flags = ("--monitor-port=0", "--client-port=0", "--server-base-port=0", "--no-progress")
        places = (f"--log-dir={folder}/logs", f"--param-mirror-checkpoint-dir={folder}/checkpoints")
        launcher = await asyncio.create_subprocess_exec(
            *(sys.executable, str(ROOT / "run_local.py"), f"--config-path={CONFIG}", *flags, *places),
            stdout=quiet,
            stderr=quiet,
            cwd=ROOT,
            env={**os.environ, RUNTIME: folder},
        )
        try:
            deadline = time.monotonic() + 2 * BOUND_S
            while not _titled(launcher.pid, "server"):
                if launcher.returncode is not None or time.monotonic() > deadline:
                    raise RoleError(f"run_local.py started no server; its code is {launcher.returncode}")
                await asyncio.sleep(0.1)
            await asyncio.sleep(rng.uniform(0.0, START_S))
        finally:
            if launcher.returncode is None:
                launcher.kill()
            await launcher.wait()
        await asyncio.sleep(AFTER_S)
        left = marked(str(Path(folder)))
        words = [told(process) for process in left]
        for process in left:
            process.kill()
        return words
