"""Faults 4 and 12: a writer that is killed anywhere, two writers at once, a disk that is full."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.integration.checkpoint_writer import EXPERT, MARKED, SIZE, mark_of
from tests.unit.checkpoint.states import (
    DIGEST,
    RUN,
    moments,
    newest,
    same_bits,
    shard_state,
    shared_tensors,
    temporary_files,
    trainer_part,
)

from distqat.checkpoint import CheckpointStore, read_trainer_parts, verify, write_trainer_part
from distqat.checkpoint.manifest import MARKS_KEPT
from distqat.errors import CheckpointError

ROOT = Path(__file__).parents[2]
POINTS = ("temp_file", "fsync", "manifest", "rename")


@dataclass
class Writers:
    """Writers on demand, one at a time."""

    process: subprocess.Popen[bytes]

    def start(self, folder: Path, armed: str = "", what: str = "shards") -> int:
        """Start one that writes `shards` or trainers' `parts` into `folder`, failpoints armed; its pid."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}|{folder}|{armed}\n".encode())
        self.process.stdin.flush()
        return int(self._word("pid", []))

    def ended(self) -> tuple[int, list[int]]:
        """Exit code of the one that runs, and the steps that it said were written."""
        wrote: list[int] = []
        return int(self._word("ended", wrote)), wrote

    def _word(self, word: str, wrote: list[int]) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            name, value = line.decode().split()
            if name == word:
                return value
            assert name == "wrote"
            wrote.append(int(value))
        raise AssertionError(f"the writers ended without {word!r}")


@pytest.fixture(scope="module")
def writers() -> Iterator[Writers]:
    command = [sys.executable, "-m", "tests.integration.checkpoint_writer"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield Writers(process)
        assert process.stdin is not None
        process.stdin.close()


def kill_at_random(writers: Writers, folder: Path, rng: random.Random, number: int) -> tuple[int, list[int]]:
    """Every other time at a failpoint, else at any time of the writer's work."""
    if number % 2:
        point = f"checkpoint.{POINTS[number // 2 % len(POINTS)]}"
        writers.start(folder, f"{point}:kill9@{rng.randint(1, 9)}")
    else:
        pid = writers.start(folder)
        assert writers.process.stdout is not None
        select.select([], [], [], rng.uniform(0, 0.15))
        os.kill(pid, signal.SIGKILL)
    return writers.ended()


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_whenever_a_writer_is_killed_the_last_checkpoint_loads(
    writers: Writers, tmp_path: Path, seed: int, kills: int
) -> None:
    rng = random.Random(seed)
    store = CheckpointStore(tmp_path / "run", RUN)
    acknowledged, marked, torn = -1, -1, 0
    for number in range(kills):
        status, wrote = kill_at_random(writers, tmp_path / "run", rng, number)
        assert status == -signal.SIGKILL
        acknowledged = max([acknowledged, *wrote])
        marked = max([marked, *(step for step in wrote if step % 10 in MARKED)])
        torn += bool(temporary_files(tmp_path / "run"))
        store.prune()
        assert temporary_files(tmp_path / "run") == []
        search = store.search("front", DIGEST)
        assert search.skipped == []
        if search.shard is None:
            assert acknowledged == -1
            continue
        manifest = search.shard.manifest
        assert manifest.step >= acknowledged, "what was written before the kill is there"
        assert same_bits(search.shard.shared, shared_tensors(manifest.round, size=SIZE))
        assert same_bits(search.shard.private[EXPERT], moments(manifest.step % 200))
        assert marks_load(store) >= marked, "a mark that was written before the kill is there"
    assert acknowledged > 0
    assert marked > 0
    assert torn >= kills // 5, "kills fell into writes"
    assert not any(report.problems for report in verify(tmp_path / "run"))
    assert len(store.rounds()) <= 3 + MARKS_KEPT


def marks_load(store: CheckpointStore) -> int:
    """The step of the newest mark, -1 without; all that are offered load as they were written."""
    marks = store.marks("front", DIGEST)
    for mark in marks:
        shard = store.load_mark("front", mark.mark, DIGEST)
        assert mark.mark == mark_of(mark.step)
        assert same_bits(shard.shared, shared_tensors(mark.round, size=SIZE))
        assert same_bits(shard.private[EXPERT], moments(mark.step % 200))
    return marks[0].step if marks else -1


@pytest.mark.parametrize(
    ("point", "hit"), [("temp_file", 8), ("fsync", 8), ("manifest", 4), ("temp_file", 9), ("rename", 4)]
)
def test_killed_while_it_adds_a_marked_part_the_previous_mark_loads(
    writers: Writers, tmp_path: Path, point: str, hit: int
) -> None:
    store = CheckpointStore(tmp_path / "run", RUN)
    writers.start(tmp_path / "run", f"checkpoint.{point}:kill9@{hit}")
    status, wrote = writers.ended()
    assert (status, wrote) == (-signal.SIGKILL, [0, 3, 5])  # it was at step 7, which is marked too
    for _ in range(2):
        assert [mark.step for mark in store.marks("front", DIGEST)] == [3]
        assert marks_load(store) == 3
        assert newest(store).manifest.step == 5
        store.prune()
    (entry,) = store.rounds()
    listed = {"manifest.json", *entry.manifests["front"].files}
    assert {path.name for path in (entry.path / "front").iterdir()} == listed


@pytest.mark.parametrize("point", POINTS)
def test_each_failpoint_fires_and_leaves_the_previous_one(
    writers: Writers, tmp_path: Path, point: str
) -> None:
    store = CheckpointStore(tmp_path / "run", RUN)
    store.write("front", shard_state(0, size=SIZE))
    writers.start(tmp_path / "run", f"checkpoint.{point}:kill9@1")
    status, wrote = writers.ended()
    assert (status, wrote) == (-signal.SIGKILL, [])
    assert temporary_files(tmp_path / "run") != []
    assert same_bits(newest(store).shared, shared_tensors(0, size=SIZE))
    store.prune()
    assert temporary_files(tmp_path / "run") == []
    assert [entry.round for entry in store.rounds()] == [0]


@pytest.mark.parametrize("point", ["temp_file", "fsync", "trainer_part.rename"])
def test_killed_while_it_writes_a_trainers_part_the_previous_ones_load(
    writers: Writers, tmp_path: Path, point: str
) -> None:
    writers.start(tmp_path / "run", f"checkpoint.{point}:kill9@4", "parts")
    status, wrote = writers.ended()
    assert (status, wrote) == (-signal.SIGKILL, [1, 2, 3])
    assert temporary_files(tmp_path / "run") != []
    assert read_trainer_parts(tmp_path / "run", RUN) == [trainer_part(3), trainer_part(2)]
    write_trainer_part(tmp_path / "run", trainer_part(4), keep=2)
    assert read_trainer_parts(tmp_path / "run", RUN) == [trainer_part(4), trainer_part(3)]
    assert temporary_files(tmp_path / "run") == []


def test_two_processes_write_the_same_rounds(tmp_path: Path) -> None:
    code = (
        "import sys; from tests.unit.checkpoint.states import *\n"
        "store, uid = CheckpointStore(sys.argv[1], RUN, keep=9), sys.argv[2]\n"
        "sys.stdin.readline()\n"
        "for round in range(6):\n"
        "    store.write('front', shard_state(round, size=5000, private={uid: moments(round)}))\n"
        "    store.prune()\n"
    )
    uids = ["front.0.0.0", "front.0.1.0"]
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), uid], cwd=ROOT, stdin=subprocess.PIPE)
        for uid in uids
    ]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda process: process.communicate(b"go\n", timeout=50), processes))
    assert [process.returncode for process in processes] == [0, 0]
    store = CheckpointStore(tmp_path, RUN)
    assert [entry.round for entry in store.rounds()] == list(range(6))
    assert not any(report.problems for report in verify(tmp_path))
    for entry in store.rounds():
        assert {part.expert for part in entry.manifests["front"].private} == set(uids)
    assert temporary_files(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, timeout=20)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"no file system can be mounted: {done.stderr.strip()}; unit tests inject the error")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=20)


def test_a_full_disk_leaves_the_old_checkpoint(small_disk: Path) -> None:
    store = CheckpointStore(small_disk / "run", RUN)
    store.write("front", shard_state(0, size=40_000))
    for _ in range(3):
        with pytest.raises(CheckpointError, match="No space left on device; make room"):
            store.write("front", shard_state(1, size=60_000))
        assert temporary_files(small_disk) == []
    assert [entry.round for entry in store.rounds()] == [0]
    assert same_bits(newest(store).shared, shared_tensors(0, size=40_000))
    store.write("front", shard_state(2, size=10_000))
    assert newest(store).manifest.round == 2
