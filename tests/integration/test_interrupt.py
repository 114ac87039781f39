"""Ctrl-C while a program is being imported: one line, code 130, whatever the program and the moment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Read by Python as it starts: it interrupts the process when a module begins to be imported.
HOOK = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            os.kill(os.getpid(), signal.SIGINT)
        return None

sys.meta_path.insert(0, Interrupt())
"""
PEER = "/ip4/127.0.0.1/tcp/9/p2p/QmTest"
LAUNCHERS = {
    "run_local": ["run_local.py"],
    "trainer-client": ["start_trainer_client.py"],
    "servers": ["start_servers.py", f"--initial-peers={PEER}"],
    "test_failover": ["test_failover.py"],
}
COMMANDS = {
    "evaluate": (["evaluate", "model.safetensors"], "torch"),
    "export": (["export", "model.safetensors", "--out", "out"], "torch"),
    "predict": (["predict", "model.onnx", "digit.png"], "numpy"),
    "checkpoint": (["checkpoint", "verify", "checkpoints"], "torch"),
    "config": (["config"], "yaml"),
}
ROLES = {
    "monitor": "monitor.py",
    "client": "client.py",
    "server": "server.py",
    "trainer": "trainer.py",
    "data-server": "data_server.py",
}


def interrupted(folder: Path, at: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(HOOK)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "src")]),
        "INTERRUPT_AT": at,
        "XDG_RUNTIME_DIR": str(folder),
    }
    command = [sys.executable, *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=50, check=False
    )


@pytest.mark.parametrize("at", ["distqat.process", "setproctitle", "pydantic", "distqat.config.schema"])
@pytest.mark.parametrize("name", LAUNCHERS)
def test_launchers(tmp_path: Path, name: str, at: str) -> None:
    script, *flags = LAUNCHERS[name]
    done = interrupted(tmp_path, at, [str(ROOT / script), *flags])
    assert (done.returncode, done.stderr) == (130, f"distqat {name}: interrupted\n")
    assert done.stdout in ("", "distqat: starting\n")
    assert not [path for path in tmp_path.iterdir() if path.name not in ("sitecustomize.py", "distqat")]


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(tmp_path: Path, name: str) -> None:
    words, at = COMMANDS[name]
    (tmp_path / "model.safetensors").touch()
    done = interrupted(tmp_path, at, ["-c", "from distqat.launch.cli import main; main()", *words])
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"distqat {name}: interrupted\n")


@pytest.mark.parametrize("name", ROLES)
def test_roles_by_path_by_module_and_by_name(tmp_path: Path, name: str) -> None:
    path = ROOT / "src" / "distqat" / "distributed" / ROLES[name]
    for words in (
        [str(path)],
        ["-m", f"distqat.distributed.{path.stem}"],
        ["-c", "from distqat.launch.cli import main; main()", name],
    ):
        done = interrupted(tmp_path, "torch", words)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", f"distqat {name}: interrupted\n"), (
            words
        )
