"""The launchers as processes, over roles that stand in for the real ones."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.integration.launch_scene import PEER, ROOT

from distqat.config import ConfigParser, add_config_arguments, config_from_args
from distqat.launch import start_servers, trainer_client
from distqat.launch.launcher_roles import read_settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfd and PR_SET_PDEATHSIG are Linux's")
SCENE = Path(__file__).with_name("launch_scene.py")
Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start a launcher with logs in `tmp_path`; `scene` tells the roles what to do."""
    started: list[subprocess.Popen[str]] = []

    def start(launcher: str, *flags: str, scene: str = "") -> subprocess.Popen[str]:
        environment = {
            **os.environ, "SCENE": scene, "SCENE_DIR": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, str(SCENE), launcher, f"--log-dir={tmp_path / 'logs'}", *flags],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=10)


def started_server(launcher: subprocess.Popen[str]) -> tuple[str, int, int]:
    assert launcher.stdout is not None
    line = launcher.stdout.readline()
    found = re.match(r"(server \d+) started: PID (\d+), port (\d+), log \S+", line)
    assert found is not None, line
    return found[1], int(found[2]), int(found[3])


def test_two_launchers_of_one_host_do_not_meet(launch: Launch, tmp_path: Path) -> None:
    flags = ["--num-servers=2", f"--initial-peers={PEER}"]
    first, second = launch("start_servers", *flags), launch("start_servers", *flags)
    running = [started_server(launcher) for launcher in (first, first, second, second)]
    assert len({name for name, _, _ in running}) == 4
    assert len({port for _, _, port in running}) == 4
    os.kill(running[0][1], signal.SIGKILL)
    assert first.stdout is not None
    assert "ended with SIGKILL: starting again in 0.2 s" in first.stdout.readline()
    assert started_server(first)[2] == running[0][2]  # on the same port
    for launcher in (first, second):
        launcher.terminate()
        output, errors = launcher.communicate(timeout=20)
        assert launcher.returncode == 0, errors
        assert output.count("ended with code 0: stopped") == 2
    assert {path.name for path in (tmp_path / "logs").glob("server_*")} == {
        f"server_{i}.log" for i in range(4)
    }


def test_sigkill_of_a_launcher_takes_its_servers(launch: Launch) -> None:
    launcher = launch("start_servers", "--server-base-port=0", f"--initial-peers={PEER}")
    _, pid, _ = started_server(launcher)
    server = os.pidfd_open(pid)
    launcher.kill()
    launcher.communicate(timeout=10)  # until nobody holds its output any more
    with pytest.raises(ProcessLookupError):
        signal.pidfd_send_signal(server, 0)
    os.close(server)


def test_when_all_servers_have_finished_the_launcher_ends_well(launch: Launch, tmp_path: Path) -> None:
    launcher = launch("start_servers", "--server-base-port=0", f"--initial-peers={PEER}", scene="finish")
    output, errors = launcher.communicate(timeout=30)
    assert launcher.returncode == 0, errors
    assert "server 0 (PID" in output
    assert "ended with code 0: finished" in output
    assert re.fullmatch(r"port \d+ index 0\n", (tmp_path / "logs" / "server_0.log").read_text())


class NoZygote:
    """For launchers that end before they start anything."""

    @classmethod
    def start(cls, preload: Sequence[str]) -> NoZygote:
        return cls()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for module in (start_servers, trainer_client):
        monkeypatch.setattr(module, "ForkServerClient", NoZygote)
        monkeypatch.setattr(module, "set_title", lambda *_: None)
    monkeypatch.setattr("distqat.launch.launcher_roles.set_up_logging", lambda *_: None)


@pytest.mark.usefixtures("in_process")
def test_a_given_port_that_is_busy_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        assert start_servers.main([f"--server-base-port={port}", f"--initial-peers={PEER}"]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(rf"distqat servers: port {port} is in use by PID {os.getpid()} \(.*\n", said)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("main", "flags", "said"),
    [
        (start_servers.main, [], "--initial-peers is missing"),
        (start_servers.main, ["--num-servers=0", f"--initial-peers={PEER}"], "--num-servers 0: at least 1"),
        (start_servers.main, ["--data-precision=fp17"], "fp17"),
        (trainer_client.main, ["--diloco-inner-step=5"], "did you mean '--diloco-inner-steps'?"),
    ],
)
def test_bad_usage_is_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], main: Callable[..., int], flags: list[str], said: str
) -> None:
    try:
        code: object = main(flags)
    except SystemExit as end:  # how a parser ends
        code = end.code
    assert code == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1


@pytest.mark.usefixtures("in_process")
def test_what_a_server_is_given(tmp_path: Path) -> None:
    parser = ConfigParser()
    add_config_arguments(parser)
    flags = [f"--initial-peers={PEER}", "--device=cpu", "--diloco-inner-steps=7", "--server-base-port=0"]
    plans = start_servers.plan_servers(read_settings(parser.parse_args(flags)), 2)
    first, second = (plan.command for plan in plans)
    assert (first.name, second.name) == ("server 0", "server 1")
    assert first.log_path == Path("logs/resnet18/server_0.log")
    told = json.loads(second.env["DISTQAT_ROLE"])
    assert told == {"log_name": "server_1", "claimed_port": plans[1].port.port, "server_index": 1}
    assert first.threads is not None
    assert first.threads >= 1
    again = config_from_args(parser.parse_args(list(first.argv)))
    assert again.server_base_port == plans[0].port.port != 0
    assert again.initial_peers == [PEER]
    assert again.diloco.inner_steps == 7


@pytest.mark.parametrize("scene", ["", "crash"])
def test_trainer_client_prints_the_peers_and_ends_with_its_client(
    launch: Launch, tmp_path: Path, scene: str
) -> None:
    launcher = launch("trainer_client", "--initial-peers=/ip4/127.0.0.1/tcp/1/p2p/QmOther", scene=scene)
    output, errors = launcher.communicate(timeout=30)
    assert launcher.returncode == 0, errors
    lines = output.splitlines()
    assert lines[0].endswith(" starting the monitor")
    assert f"Initial peers: {PEER}" in lines
    told = [line for line in lines if line.startswith("monitor ")]
    if scene == "crash":
        assert re.fullmatch(
            r"monitor \(PID \d+\) ended with SIGABRT: starting again in 0\.2 s; see \S+monitor\.log", told[0]
        )
        assert re.fullmatch(r"monitor started again: PID \d+", told[1])
    assert len(told) == (2 if scene == "crash" else 0)
    log = (tmp_path / "logs" / "client.log").read_text()
    assert log == f"peers {PEER},/ip4/127.0.0.1/tcp/1/p2p/QmOther\n"


def test_trainer_client_without_progress_prints_the_peers_alone(launch: Launch) -> None:
    launcher = launch("trainer_client", "--no-progress")
    output, errors = launcher.communicate(timeout=30)
    assert (launcher.returncode, errors) == (0, "")
    assert output == f"Initial peers: {PEER}\n"


def test_what_the_client_ended_with_is_the_last_line_and_its_restarts_are_said(
    launch: Launch, tmp_path: Path
) -> None:
    launcher = launch("trainer_client", "--no-progress", scene="refuse")
    output, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    sentence = r"ValueError: label 'inf' of row 7 \(\S+launch_scene\.py:\d+\)"
    assert re.fullmatch(rf"see \S+/client\.log\ndistqat trainer-client: {sentence}\n", errors)
    assert "client: waiting for the data set, since 10 s\n" in output
    assert re.search(
        rf"client \(PID \d+\) ended with code 1: {sentence}; starting again in 0\.2 s; see ", output
    )
    assert "ended with code 1: the same error again; starting again in 0.4 s" in output
    assert output.count("client started again: PID ") == 2
    assert len(re.findall(sentence, output)) == 1
    assert "Traceback" in (tmp_path / "logs" / "client.log").read_text()


def test_servers_that_are_all_refused_say_so_once(launch: Launch) -> None:
    launcher = launch(
        "start_servers", "--num-servers=3", "--server-base-port=0", f"--initial-peers={PEER}", scene="refuse"
    )
    output, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 2
    assert re.fullmatch(
        r"see \S+/server_\d\.log\ndistqat servers: seed: the run has 7; start the server with --seed 7\n",
        errors,
    )
    assert "seed" not in output


@pytest.mark.slow
@pytest.mark.parametrize("script", ["start_servers.py", "start_trainer_client.py"])
def test_root_scripts_answer_help(script: str) -> None:
    done = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--initial-peers" in done.stdout


def test_a_root_script_without_the_package_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "start_servers.py")],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert "run `make setup` first" in done.stderr
