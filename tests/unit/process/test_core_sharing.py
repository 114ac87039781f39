"""Servers of one host share its cores, however they were started."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from pathlib import Path

import pytest

from distqat.process import core_sharing
from distqat.process.core_sharing import CoreShare, core_quota, share_of_cores

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize(
    ("own", "others", "quota", "threads"),
    [
        (range(8), [], math.inf, 8),
        (range(8), [range(8)] * 2, math.inf, 2),
        (range(2), [range(2)] * 3, math.inf, 1),  # at least one
        (range(4), [range(4, 8)], math.inf, 4),  # pinned elsewhere
        (range(8), [range(4)], math.inf, 6),
        (range(3), [range(3)] * 2, math.inf, 1),  # three thirds are one, however they are rounded
        (range(64), [], 2.0, 2),  # a container
        (range(64), [range(64)], 3.0, 1),
    ],
)
def test_each_core_is_divided_among_those_that_may_run_on_it(
    own: range, others: list[range], quota: float, threads: int
) -> None:
    assert share_of_cores(own, others, quota) == threads


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, math.inf),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
    ],
)
def test_the_time_of_a_container(tmp_path: Path, files: dict[str, str], quota: float) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert core_quota(tmp_path) == quota


def test_servers_come_and_go(tmp_path: Path) -> None:
    first = CoreShare(tmp_path, range(8))
    assert first.threads() == 8
    assert first.threads(at_most=3) == 3
    second = CoreShare(tmp_path, range(8))
    third = CoreShare(tmp_path, range(4, 12))
    assert (first.threads(), second.threads(), third.threads()) == (3, 3, 5)
    second.leave()
    second.leave()
    assert (first.threads(), third.threads()) == (6, 6)
    third.leave()
    first.leave()
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from distqat.process.core_sharing import CoreShare\n"
        f"share = CoreShare(Path({str(tmp_path)!r}), range(4)); print('there', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"there\n"
        own = CoreShare(tmp_path, range(4))
        assert own.threads() == 2
    finally:
        other.kill()
        other.communicate(timeout=10)
    assert own.threads() == 4
    own.leave()
    assert list(tmp_path.iterdir()) == []


async def test_the_compute_thread_hears_of_every_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_sharing, "LOOK_S", 0.005)
    heard: asyncio.Queue[int] = asyncio.Queue()
    own = CoreShare(tmp_path, range(4))
    following = asyncio.ensure_future(own.follow(heard.put_nowait))
    assert await heard.get() == 4
    other = CoreShare(tmp_path, range(4))
    assert await heard.get() == 2
    other.leave()
    assert await heard.get() == 4
    assert heard.empty()
    following.cancel()
    own.leave()


def test_a_file_that_says_nothing_is_nobody(tmp_path: Path) -> None:
    own = CoreShare(tmp_path, range(4))
    other = CoreShare(tmp_path, range(4))
    other._path.write_text("what?")
    assert own.threads() == 4
    for share in (own, other):
        share.leave()
