"""run_local.py as a process: over roles that stand in for the real ones, and once over the real ones."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.local_scene import MONITOR, ROOT

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="pidfd and PR_SET_PDEATHSIG are Linux's"),
    pytest.mark.timeout(120),
]
SCENE = Path(__file__).with_name("local_scene.py")
FLAGS = (
    "--config-path=configs/mlp.yaml", "--experiment-prefix=scene", "--monitor-port=0", "--client-port=0",
    "--server-base-port=0", "--diloco-outer-steps=2",
)  # fmt: skip
Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start the launcher with logs in `tmp_path`; `scene` tells the roles what to do."""
    started: list[subprocess.Popen[str]] = []

    def start(*flags: str, scene: str = "", script: Path = SCENE) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "SCENE": scene,
            "XDG_RUNTIME_DIR": str(tmp_path),
            "PYTHONUNBUFFERED": "1",
        }
        places = (f"--log-dir={tmp_path / 'logs'}", f"--param-mirror-checkpoint-dir={tmp_path / 'ck'}")
        process = subprocess.Popen(
            [sys.executable, str(script), *FLAGS, *places, *flags],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=10)


def read_until(process: subprocess.Popen[str], said: str) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if said in line:
            return "".join(lines)
    raise AssertionError(f"{said!r} was never said: {lines}")


def test_a_run_from_its_first_line_to_the_summary(launch: Launch, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "commit_log.jsonl").write_text("of an earlier run\n")
    launcher = launch("--replicas=2")
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "distqat: starting\n"
    output, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, errors
    for said in ("swarm scene: mlp.front → mlp.back, 2 replica(s)", "2 rounds of 5 steps", "97.00 %", "640"):
        assert said in output
    assert re.search(r"first step after \d+\.\d s", output)
    assert re.search(r"sent by servers \(1\) +10 B", output)
    assert output.rstrip().endswith(f"logs         {tmp_path / 'logs'}/")
    assert (logs / "server_3.log").read_text().startswith(f"server of {MONITOR}\n")
    assert not (logs / "server_4.log").exists()
    assert "first step after" in (logs / "run_local.log").read_text()
    assert not (logs / "commit_log.jsonl").exists()
    assert len(list(logs.glob("previous/*/commit_log.jsonl"))) == 1


def test_with_baseline_compares_at_equal_samples(launch: Launch, tmp_path: Path) -> None:
    launcher = launch("--with-baseline", "--no-progress")
    output, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, errors
    assert re.search(r"held out +97\.00 % +98\.00 % +-1\.00 points", output)
    assert not list((tmp_path / "logs" / "baseline").glob("server_*"))
    theirs = json.loads((tmp_path / "logs" / "baseline" / "summary.json").read_text())
    assert theirs["samples"] == 640


def test_a_client_that_fails_is_one_sentence_and_its_log(launch: Launch, tmp_path: Path) -> None:
    launcher = launch(scene="fail")
    output, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert errors == (
        f"see {tmp_path}/logs/data_server.log\ndistqat run_local: the hub cannot be reached; use digits\n"
    )
    assert "hub" not in output


def test_a_model_that_could_not_be_judged_is_there_and_the_code_is_1(launch: Launch) -> None:
    launcher = launch(scene="unjudged")
    output, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 1, output + errors
    assert re.search(r"accuracy, held out +not judged", output)
    assert "model        ck/model.safetensors" in output
    last = errors.splitlines()[-1]
    assert last.startswith(
        "distqat run_local: the model is saved as ck/model.safetensors, but it could not be "
    )
    assert "judged: held-out sample 9 cannot be used; when that is put right: distqat evaluate ck/" in last
    assert errors.count("could not be judged") == 1
    assert "starting again" not in output


def test_a_drill_whose_client_fails_ends_with_the_cause(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LAUNCHER", "drill")
    launcher = launch(scene="fail")
    output, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert errors == (
        f"see {tmp_path}/logs/data_server.log\ndistqat test_failover: the hub cannot be reached; use digits\n"
    )
    assert "hub" not in output
    assert "VERDICT: FAIL" in output


def test_too_few_servers_end_the_run_with_what_they_said(launch: Launch) -> None:
    launcher = launch(scene="broken")
    output, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 2
    assert re.fullmatch(
        r"see \S+/server_\d\.log\ndistqat run_local: seed: the run has 7; start the server with --seed 7\n",
        errors,
    )
    assert "seed" not in output


def test_ctrl_c_ends_everything_in_order(launch: Launch) -> None:
    launcher = launch(scene="endless")
    read_until(launcher, "first step after")
    launcher.send_signal(signal.SIGINT)
    output, errors = launcher.communicate(timeout=10)
    assert launcher.returncode == 0, errors
    assert "stopped before the run was finished; logs in " in output
    assert "once more to leave at once" in errors


def test_two_runs_do_not_share_a_folder(launch: Launch) -> None:
    first = launch(scene="endless")
    read_until(first, "first step after")
    second = launch(scene="endless")
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 1
    assert errors.count("\n") == 1
    assert "another launcher writes" in errors


def test_a_default_port_that_is_busy_is_refused(launch: Launch) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        launcher = launch(f"--client-port={port}")
        _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert f"port {port} is in use by PID {os.getpid()}" in errors


@pytest.mark.slow
def test_the_real_roles_train(launch: Launch, tmp_path: Path) -> None:
    launcher = launch("--replicas=1", "--diloco-inner-steps=3", script=ROOT / "run_local.py")
    output, errors = launcher.communicate(timeout=100)
    assert launcher.returncode == 0, output + errors
    found = json.loads((tmp_path / "logs" / "summary.json").read_text())
    assert found["samples"] >= 2 * 3 * 32
    assert Path(found["model"]).is_file()
    assert "accuracy, held out" in output
    assert {"monitor.log", "client.log", "trainer_0.log", "server_0.log", "server_1.log"} <= {
        path.name for path in (tmp_path / "logs").iterdir()
    }
