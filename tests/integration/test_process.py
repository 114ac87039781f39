"""Real processes: who ends with whom, and what an owner learns. No waits but on events, with deadlines."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.process_scene import ROOT, command

from distqat.errors import RoleError
from distqat.process import ForkServerClient, RestartPolicy, RoleCommand, RoleEnded, Supervisor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfd and PR_SET_PDEATHSIG are Linux's")
SCENE = Path(__file__).with_name("process_scene.py")
QUICK = RestartPolicy(first_delay_s=0.001, max_delay_s=0.002, crashes=3)


class Watched:
    """Processes by pidfd: their ends are events, and a number that was given out again confuses nobody."""

    def __init__(self, pids: list[int]) -> None:
        self._left = {os.pidfd_open(pid): pid for pid in pids}

    def wait_gone(self, timeout_s: float) -> list[int]:
        """The PIDs that are still there after `timeout_s`; a zombie is gone."""
        end = time.monotonic() + timeout_s
        poll = select.poll()
        for fd in self._left:
            poll.register(fd, select.POLLIN)
        while self._left and (left := end - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                poll.unregister(fd)
                os.close(fd)
                del self._left[fd]
        return list(self._left.values())

    def end(self) -> None:
        for fd in self._left:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start this file's scene as a process; whatever is left of it is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start_scene(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(SCENE), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        started.append(process)
        return process

    yield start_scene
    for process in started:
        process.kill()
        process.communicate(timeout=10)


@pytest.fixture
def watch() -> Iterator[Callable[[list[int]], Watched]]:
    seen: list[Watched] = []

    def watch_pids(pids: list[int]) -> Watched:
        seen.append(Watched(pids))
        return seen[-1]

    yield watch_pids
    for watched in seen:
        watched.end()


@pytest.fixture
async def fork_server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ForkServerClient]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    started = ForkServerClient.start(())
    yield started
    await asyncio.wait_for(started.close(), 10)


def line_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The next line of JSON that it prints; other lines are passed over."""
    assert process.stdout is not None
    for text in process.stdout:
        if text.startswith("{"):
            return dict(json.loads(text))
    assert process.stderr is not None
    pytest.fail(process.stderr.read())


@pytest.mark.parametrize("kind", ["serve", "stubborn", "client"])
@pytest.mark.parametrize("way", ["fork", "exec"])
def test_sigkill_of_the_owner_leaves_no_process(start: Start, watch: Any, way: str, kind: str) -> None:
    owner = start("own", way, kind)
    said = line_of(owner)
    watched = watch([said["fork_server"], *said["pids"]])
    owner.kill()
    assert watched.wait_gone(2.0) == []


def test_sigkill_of_the_owner_while_the_fork_server_imports(start: Start, watch: Any) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "import os, signal, time\nfrom distqat.process import ForkServerClient\n"
         "print(ForkServerClient.start(('torch', 'torch._dynamo', 'hivemind')).pid, flush=True)\n"
         "signal.pause()"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    watched = watch([int(process.stdout.readline())])
    process.kill()
    process.communicate(timeout=10)
    assert watched.wait_gone(2.0) == []


@pytest.mark.parametrize("kind", ["serve", "client"])
def test_sigkill_of_the_fork_server_takes_its_roles_and_the_owner_learns(
    start: Start, watch: Any, kind: str
) -> None:
    owner = start("own", "fork", kind)
    said = line_of(owner)
    watched = watch(said["pids"])
    os.kill(said["fork_server"], signal.SIGKILL)
    assert watched.wait_gone(2.0) == []
    _, errors = owner.communicate(timeout=10)
    assert owner.returncode == 1
    assert re.search(r"\(PID \d+\) ended with SIGKILL", errors)
    assert re.search(
        r"^distqat launcher: cannot start \w+ 0: the fork server has ended$", errors, re.MULTILINE
    )


@pytest.mark.parametrize("kind", ["serve", "client"])
def test_sigkill_of_a_role_takes_its_daemon_and_it_is_started_again(
    start: Start, watch: Any, kind: str
) -> None:
    owner = start("own", "fork", kind)
    said = line_of(owner)
    watched = watch(said["pids"])
    os.kill(said["role"], signal.SIGKILL)
    assert watched.wait_gone(2.0) == []
    again = line_of(owner)
    assert again["role"] != said["role"]
    assert again["fork_server"] == said["fork_server"]


@pytest.mark.parametrize("kind", ["serve", "client"])
@pytest.mark.parametrize("way", ["fork", "exec"])
def test_sigterm_goes_down_the_chain(start: Start, watch: Any, way: str, kind: str) -> None:
    owner = start("own", way, kind)
    said = line_of(owner)
    watched = watch([said["fork_server"], *said["pids"]])
    owner.terminate()
    output, _ = owner.communicate(timeout=10)
    assert output == "asked to stop\nover 0\n"
    assert owner.returncode == 0
    assert watched.wait_gone(1.0) == []


def test_pkill_of_everything_is_one_gesture(start: Start, watch: Any) -> None:
    owner = start("own", "fork", "serve")
    said = line_of(owner)
    watched = watch([said["fork_server"], *said["pids"]])
    for pid in (said["role"], said["fork_server"], owner.pid):  # what `pkill -f distqat` does
        os.kill(pid, signal.SIGTERM)
    output, _ = owner.communicate(timeout=10)
    assert output == "asked to stop\nover 0\n"
    assert watched.wait_gone(1.0) == []


def test_the_second_signal_ends_at_once(start: Start, watch: Any) -> None:
    role = start("stubborn")
    watched = watch(line_of(role)["pids"])
    role.send_signal(signal.SIGINT)
    assert role.stdout is not None
    assert role.stdout.readline() == "asked to stop\n"
    assert role.poll() is None
    role.send_signal(signal.SIGINT)
    assert role.wait(2.0) == 130
    assert watched.wait_gone(1.0) == []  # its daemon too


def test_a_role_that_does_not_end_in_time_is_given_up(start: Start, watch: Any) -> None:
    role = start("stubborn", "0.1")
    watched = watch(line_of(role)["pids"])
    role.terminate()
    assert role.wait(5.0) == 1
    assert watched.wait_gone(1.0) == []


def test_a_killed_role_without_owner_takes_its_daemon(start: Start, watch: Any) -> None:
    role = start("stubborn")
    watched = watch(line_of(role)["pids"])
    role.kill()
    assert watched.wait_gone(1.0) == []


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 0)])
def test_the_engines_daemon_ends_with_its_role(start: Start, watch: Any, signum: int, code: int) -> None:
    role = start("daemon")
    pids = line_of(role)["pids"]
    assert len(pids) == 2
    watched = watch(pids)
    role.send_signal(signum)
    assert role.wait(10.0) == code
    assert watched.wait_gone(1.0) == []


@pytest.mark.parametrize(
    ("scene", "code", "said"),
    [
        ("misconfigured", 2, "distqat server: data.precison: no such field; did you mean 'precision'?\n"),
        ("portless", 1, "distqat server: port 50500 is in use by PID 1\n"),
    ],
)
def test_errors_are_one_line_and_a_code(start: Start, scene: str, code: int, said: str) -> None:
    role = start(scene)
    _, errors = role.communicate(timeout=10)
    assert (role.returncode, errors) == (code, said)


async def test_a_role_gets_what_it_was_given(
    fork_server: ForkServerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GONE", "1")
    given = RoleCommand(
        "server 3",
        command("tell").entry,
        ("--device", "cpu", "--token", "abc"),
        env={"SEEN": "ü", "GONE": None},
        threads=2,
    )
    first, second = await asyncio.gather(fork_server.spawn(given), fork_server.spawn(given))
    said, other = await first.ready(20), await second.ready(20)
    assert said["argv"] == ["src/distqat/distributed/server.py", "--device", "cpu", "--token", "abc"]
    assert said["env"] == {"SEEN": "ü", "GONE": None, "OMP_NUM_THREADS": "2"}
    assert said["title"] == (
        "distqat server 3 python src/distqat/distributed/server.py --device cpu --token ***"
    )
    assert said["group"]
    assert "SIGTERM" not in said["ignored"]
    assert said["descriptors"] == 4  # standard ones and the ready pipe
    assert said["random"] != other["random"]
    assert await first.wait() == 7
    assert first.returncode == 7


async def test_a_signal_right_after_the_fork_is_not_lost(
    fork_server: ForkServerClient, tmp_path: Path
) -> None:
    for _ in range(20):
        role = await fork_server.spawn(command("serve", log=tmp_path / "log"))
        role.terminate()
        assert await asyncio.wait_for(role.wait(), 10) in (-signal.SIGTERM, 0)


@pytest.mark.slow
async def test_what_is_forked_from_the_warm_process_can_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    fork_server = ForkServerClient.start()
    roles = await asyncio.gather(*(fork_server.spawn(command("compute", threads=2)) for _ in range(3)))
    said = [await role.ready(30) for role in roles]
    await asyncio.wait_for(fork_server.close(), 10)
    assert said == [{"total": 1e9, "torch_threads": 2, "parent_threads": 1, "warm": True}] * 3


async def test_not_ready(fork_server: ForkServerClient, tmp_path: Path) -> None:
    role = await fork_server.spawn(command("crash", log=tmp_path / "server_0.log"))
    with pytest.raises(
        RoleError, match=r"server 0 ended with code -9 before it was ready; see .*server_0\.log"
    ):
        await role.ready(20)
    stuck = await fork_server.spawn(RoleCommand("server 1", "signal:sigwait", ()))
    with pytest.raises(RoleError, match=r"server 1 \(PID \d+\) (was not ready|ended)"):
        await stuck.ready(0.01)


async def test_an_entry_that_does_not_exist_is_in_the_log(
    fork_server: ForkServerClient, tmp_path: Path
) -> None:
    log = tmp_path / "logs" / "server_0.log"
    role = await fork_server.spawn(RoleCommand("server 0", "distqat.no_such_module:main", log_path=log))
    assert await asyncio.wait_for(role.wait(), 20) == 1
    assert "ModuleNotFoundError" in log.read_text()


async def test_a_crash_loop_stops(fork_server: ForkServerClient) -> None:
    ends: list[RoleEnded] = []
    supervisor = Supervisor(fork_server, on_end=ends.append)
    assert await asyncio.wait_for(supervisor.keep(command("crash"), QUICK), 30) == -signal.SIGKILL
    assert len(ends) == 4
    assert len({end.pid for end in ends}) == 4
    assert ends[-1].consequence == "given up: it crashed 4 times within 120 s"
    assert supervisor.live == ()


async def test_a_role_is_started_again_until_it_finishes(
    fork_server: ForkServerClient, tmp_path: Path
) -> None:
    ends: list[RoleEnded] = []
    log = tmp_path / "server_0.log"
    role = command("crash_until_third", log=log, env={"RUNS": str(tmp_path / "runs")})
    assert await asyncio.wait_for(Supervisor(fork_server, on_end=ends.append).keep(role, QUICK), 30) == 0
    assert [end.code for end in ends] == [1, 1, 0]
    assert ends[-1].consequence == "finished"
    assert log.read_text().count("ZeroDivisionError: a crash") == 2


async def test_a_refused_configuration_is_not_started_again(
    fork_server: ForkServerClient, tmp_path: Path
) -> None:
    ends: list[RoleEnded] = []
    role = command("misconfigured", log=tmp_path / "log")
    assert await asyncio.wait_for(Supervisor(fork_server, on_end=ends.append).keep(role, QUICK), 30) == 2
    assert [end.consequence for end in ends] == ["given up: its command line or configuration was refused"]


async def test_stop_kills_the_group_of_who_does_not_end(
    fork_server: ForkServerClient, watch: Any, tmp_path: Path
) -> None:
    started: asyncio.Queue[Any] = asyncio.Queue()
    supervisor = Supervisor(fork_server, on_start=started.put_nowait)
    kept = asyncio.ensure_future(supervisor.keep(command("stubborn", log=tmp_path / "log"), QUICK))
    role = await asyncio.wait_for(started.get(), 20)
    watched = watch((await role.ready(20))["pids"])
    await asyncio.wait_for(supervisor.stop(grace_s=0.05), 5)
    assert await asyncio.wait_for(kept, 5) == -signal.SIGKILL
    assert watched.wait_gone(1.0) == []


async def test_stop_during_a_delay_starts_nothing_more(fork_server: ForkServerClient) -> None:
    ended = asyncio.Event()
    supervisor = Supervisor(fork_server, on_end=lambda _: ended.set())
    policy = RestartPolicy(first_delay_s=3600.0, max_delay_s=3600.0)
    kept = asyncio.ensure_future(supervisor.keep(command("crash"), policy))
    await asyncio.wait_for(ended.wait(), 20)
    await supervisor.stop()
    assert await asyncio.wait_for(kept, 5) == -signal.SIGKILL


async def test_a_closed_zygote_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fork_server = ForkServerClient.start(())
    await asyncio.wait_for(fork_server.warm(), 20)
    await asyncio.wait_for(fork_server.close(), 10)
    with pytest.raises(RoleError, match="the fork server has ended"):
        await fork_server.spawn(command("tell"))


async def test_a_role_speaks_to_whoever_started_it(tmp_path: Path, fork_server: ForkServerClient) -> None:
    heard: list[str] = []
    ends: list[RoleEnded] = []
    supervisor = Supervisor(fork_server, on_end=ends.append, on_notice=lambda who, said: heard.append(said))
    code = await asyncio.wait_for(supervisor.keep(command("talkative", log=tmp_path / "log"), QUICK), 20)
    assert code == 1
    assert heard == ["the disk is nearly full"] * 3
    assert ends[-1].consequence == "given up: it ended 3 times in a row with the same error"
    words = ends[-1].words
    assert words is not None
    place = re.escape("process_scene.py") + r":\d+\)$"
    assert re.match(r"ZeroDivisionError: a division by zero \(.*" + place, words.sentence)
    log = (tmp_path / "log").read_text()
    assert log.count("Traceback") == 3
    assert log.rstrip().endswith(f"distqat server: {words.sentence}")
