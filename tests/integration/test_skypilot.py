"""SkyPilot tasks declare what the documented `sky launch` commands hand them; sky reads them if installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from distqat.config import Config

FOLDER = Path(__file__).parents[2] / "skypilot"
TASKS = ["start_trainer_client", "start_servers"]


def _read(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return values


@pytest.mark.parametrize("name", TASKS)
def test_the_task_runs_the_script_of_its_name(name: str) -> None:
    task = _read(name)
    assert f"python {name}.py --public-ip " in task["run"]
    assert "make setup" in task["setup"]
    assert "WANDB_API_KEY" in task["secrets"]


def test_servers_take_what_the_documented_command_hands_them() -> None:
    task = _read("start_servers")
    assert {"NUM_SERVERS", "INITIAL_PEERS"} <= set(task["envs"])
    for flag in ('--num-servers "${NUM_SERVERS}"', '--initial-peers "${INITIAL_PEERS}"'):
        assert flag in task["run"]


def test_the_default_ports_are_open() -> None:
    config = Config()
    assert _read("start_trainer_client")["resources"]["ports"] == [config.monitor_port, config.client_port]
    first, _, last = _read("start_servers")["resources"]["ports"].partition("-")
    assert int(first) == config.server_base_port
    assert int(last) - int(first) >= 8


@pytest.mark.parametrize("part", ["setup", "run"])
def test_servers_without_peers_end_at_once_and_say_what_is_missing(part: str, tmp_path: Path) -> None:
    commands = _read("start_servers")[part]
    env = {"INITIAL_PEERS": "", "PATH": str(tmp_path)}
    run = subprocess.run(["/bin/bash"], input=commands, env=env, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "INITIAL_PEERS: give the addresses" in run.stderr
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_commands_are_shell(name: str) -> None:
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=_read(name)[part], text=True, check=True)


@pytest.mark.parametrize("name", TASKS)
def test_sky_reads_the_task(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # sky keeps its state there
    sky = pytest.importorskip("sky", reason="skypilot is not installed; pip install 'distqat[skypilot]'")
    task = sky.Task.from_yaml(str(FOLDER / f"{name}.yaml"))
    assert task.name == "distqat-" + name.removeprefix("start_").replace("_", "-")
    assert f"python {name}.py" in task.run
