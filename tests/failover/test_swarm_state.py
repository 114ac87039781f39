"""Rows 12, 13, 17 and 20 of the fault table: full disks, broken checkpoints, memory, lost stages."""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.failover.invariants import check, died, heals
from tests.failover.process_swarm import STAGES, ProcessSwarm, until

from distqat.checkpoint import CheckpointStore
from distqat.checkpoint.round_index import RoundFolder

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="mounts, memory groups and /proc"),
    pytest.mark.timeout(400),
]
MEMORY = Path("/sys/fs/cgroup/memory")  # version 1


def rounds(folder: Path) -> list[RoundFolder]:
    return CheckpointStore(folder, "mlp").rounds()


def logs(swarm: ProcessSwarm) -> str:
    return "".join(path.read_text() for path in sorted(swarm.logs.glob("server_*.log")))


def test_a_full_disk_costs_a_checkpoint_and_one_warning(swarm: ProcessSwarm, fault_seed: int) -> None:
    """The error is injected where the file is written, so this runs anywhere."""
    rng = random.Random(fault_seed)
    pid = swarm.pid(f"server {rng.choice(STAGES)}.0.{rng.randrange(2)}.0")
    before, servers = logs(swarm).count("is not on disk"), swarm.pids("server")
    began = time.time()
    swarm.arm(pid, f"checkpoint.temp_file:full@{rng.randrange(1, 5)}")
    until(lambda: swarm.fired(pid), "the disk was full")
    until(lambda: logs(swarm).count("is not on disk") == before + 1, "one warning")
    assert all(not entry.broken for entry in rounds(swarm.checkpoints))
    heals(swarm, began)
    assert logs(swarm).count("is not on disk") == before + 1
    assert (
        "No space left on device; make room or change param_mirror.checkpoint_dir; training goes on"
        in logs(swarm)
    )
    assert swarm.pids("server") == servers
    newest = max(entry.round for entry in rounds(swarm.checkpoints))
    until(lambda: max(entry.round for entry in rounds(swarm.checkpoints)) > newest, "checkpoints again")


@pytest.fixture
def small_disk(swarm: ProcessSwarm) -> Iterator[Path]:
    """A file system of 3 MB over the checkpoints of the running swarm."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(swarm.checkpoints)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, timeout=20)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"no file system can be mounted: {done.stderr.strip()}; the injected one runs")
    try:
        yield swarm.checkpoints
    finally:
        subprocess.run(["umount", "-l", str(swarm.checkpoints)], check=True, timeout=20)


@pytest.mark.slow
def test_a_disk_that_is_really_full(swarm: ProcessSwarm, small_disk: Path) -> None:
    until(lambda: len(rounds(small_disk)) >= 2, "checkpoints on the small disk")
    before, servers = logs(swarm).count("is not on disk"), swarm.pids("server")
    filler = small_disk / "filler"
    began = time.time()
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:  # until nothing fits any more
            file.write(bytes(4096))
    until(lambda: logs(swarm).count("is not on disk") > before, "a warning")
    steps = len(swarm.steps())
    until(lambda: len(swarm.steps()) > steps + 50, "training goes on")
    there = [entry for entry in rounds(small_disk) if entry.manifests]
    assert there, "what was written stays"
    assert all(not entry.broken for entry in there)
    assert logs(swarm).count("is not on disk") - before <= len(servers), "once per server"
    filler.unlink()
    newest = max(entry.round for entry in there)
    until(lambda: max(entry.round for entry in rounds(small_disk)) > newest + 1, "checkpoints again")
    assert swarm.pids("server") == servers
    heals(swarm, began)


def flip(folder: Path, rng: random.Random) -> str:
    file = folder / "shared.safetensors"
    data = bytearray(file.read_bytes())
    bit = rng.randrange(len(data) * 8)
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)
    return r"shared.safetensors"


def cut(folder: Path, rng: random.Random) -> str:
    file = folder / "shared.safetensors"
    os.truncate(file, rng.randrange(file.stat().st_size))
    return r"shared.safetensors"


def another_stage(folder: Path, rng: random.Random) -> str:
    other = folder.with_name("back" if folder.name == "front" else "front")
    for file in ("manifest.json", "shared.safetensors"):
        (folder / file).write_bytes((other / file).read_bytes())
    return rf"is of stage '{other.name}', its folder is of '{folder.name}'"


def pickled(folder: Path, rng: random.Random) -> str:
    for file in folder.iterdir():
        file.unlink()
    (folder / "model.pt").write_bytes(b"\x80\x04\x95\x0e\x00\x00\x00\x00\x00\x00\x00\x8c\x06posix\x94.")
    return r"beside it: model\.pt; only safetensors with a manifest are read"


@pytest.mark.parametrize(
    "damage", [flip, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (cut, another_stage, pickled))]
)
def test_a_lost_stage_comes_back_from_the_newest_checkpoint_that_is_whole(
    swarm: ProcessSwarm, damage: object, fault_seed: int
) -> None:
    """All replicas of all stages die at once, and the newest checkpoint of one stage is broken."""
    rng = random.Random(fault_seed)
    stage = rng.choice(STAGES)
    until(lambda: sum(not e.missing for e in rounds(swarm.checkpoints)) >= 2, "two whole rounds on disk")
    servers = swarm.pids("server")
    with swarm.launchers_held():  # until the checkpoint is broken nobody is started again
        lost_at = time.time()
        for pid in servers:
            swarm.kill(pid)
        until(lambda: not swarm.alive(servers), "all of them died")
        both = [entry for entry in rounds(swarm.checkpoints) if set(entry.manifests) == set(STAGES)]
        broken = max(both, key=lambda entry: (entry.generation, entry.round))
        for newer in rounds(swarm.checkpoints):
            if (newer.generation, newer.round) > (broken.generation, broken.round):
                shutil.rmtree(newer.path / stage, ignore_errors=True)
        reason = damage(broken.path / stage, rng)  # type: ignore[operator]
    until(lambda: len(set(swarm.pids("server")) - set(servers)) == 4, "four others")
    print(f"{damage.__name__} in {broken.path.name}/{stage}")  # type: ignore[attr-defined]
    heals(swarm, lost_at)
    skipped = re.findall(rf"checkpoint skipped: \S*{broken.path.name}/{stage}\S*.*", logs(swarm))
    assert skipped
    assert all(re.search(reason, line) for line in skipped), skipped
    restarts = {e["stage"]: e["round"] for e in swarm.log_entries("restart") if e["generation"] > lost_at - 1}
    assert restarts[stage] < broken.round, "the previous one was used"
    print(f"{restarts}; next step {swarm.next_step(lost_at):.1f} s after the loss")
    said = (swarm.logs / "client.log").read_text()
    assert f"stage {stage} was lost and goes on from round {restarts[stage]}" in said


@pytest.mark.slow
def test_the_kernel_kills_a_server_for_its_memory(swarm: ProcessSwarm, fault_seed: int) -> None:
    """A memory group with less than the server allocates next: SIGKILL by the kernel."""
    uid = f"{STAGES[fault_seed % 2]}.0.1.0"
    pid = swarm.pid(f"server {uid}")
    group = MEMORY / f"distqat-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(1 << 20))
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no memory group of version 1 can be made here ({error}); SIGKILL is tested elsewhere")
    began = time.time()
    try:
        until(lambda: not swarm.alive([pid]), "the kernel killed it", 20.0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
        group.rmdir()
    assert died(swarm, uid, began) or until(lambda: died(swarm, uid, began), "the client's event")
    heals(swarm, began)


@pytest.mark.slow
def test_a_server_that_gets_no_memory_recovers_or_ends(swarm: ProcessSwarm, fault_seed: int) -> None:
    """Allocations fail (RLIMIT_AS) for some steps: those steps run elsewhere; then all is well again."""
    uid = f"{STAGES[fault_seed % 2]}.0.0.0"
    pid = swarm.pid(f"server {uid}")
    soft, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    began, steps = time.time(), len(swarm.steps())
    resource.prlimit(pid, resource.RLIMIT_AS, (psutil.Process(pid).memory_info().vms, hard))
    until(lambda: len(swarm.steps()) > steps + 100, "training goes on")
    if swarm.alive([pid]):
        resource.prlimit(pid, resource.RLIMIT_AS, (soft, hard))
    print("it", "lived on" if swarm.alive([pid]) else "ended")
    heals(swarm, began)
    check(swarm)
