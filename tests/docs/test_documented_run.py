"""A run as the pages tell it: a local swarm, a server from a second terminal, files and log lines."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docs.log_lines import LOG_LINES
from tests.docs.pages import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's"),
]
PREFIX = "documented"


class Terminal:
    """Starts commands in the repository with logs in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.logs = folder / "logs"
        self.processes: list[subprocess.Popen[str]] = []
        self._environment = {
            **os.environ, "XDG_RUNTIME_DIR": str(folder / "run"), "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        self._flags = (
            "--config-path=configs/mlp.yaml", f"--experiment-prefix={PREFIX}", f"--log-dir={self.logs}",
            f"--param-mirror-checkpoint-dir={folder / 'checkpoints'}", "--server-base-port=0",
        )  # fmt: skip

    def type(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *words, *self._flags],
            cwd=ROOT, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def wait_for(self, pattern: str, name: str, timeout_s: float = 60.0) -> None:
        """Until a line of a log matches."""
        deadline = time.monotonic() + timeout_s
        path = self.logs / name
        while not (path.exists() and re.search(pattern, path.read_text())):
            assert time.monotonic() < deadline, f"{name} never said {pattern}: {tail(path)}"
            ended = [process for process in self.processes if process.poll() is not None]
            assert not ended, ended[0].communicate()[0]
            time.sleep(0.1)


def tail(path: Path) -> str:
    return path.read_text()[-2000:] if path.exists() else "it is not there"


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    for process in terminal.processes:
        process.kill()
        process.communicate(timeout=10)


def test_a_server_is_added_to_a_running_swarm(terminal: Terminal) -> None:
    first = terminal.type(
        "run_local.py", "--diloco-outer-steps=2000", "--monitor-port=0", "--client-port=0", "--replicas=1"
    )
    terminal.wait_for(r"Trainer 0 Step #10 ", "client.log")
    peers = (terminal.logs / "initial_peers.txt").read_text().strip()
    second = terminal.type(
        "start_servers.py", "--diloco-outer-steps=2000", "--num-servers=1", f"--initial-peers={peers}"
    )
    terminal.wait_for(r"Found expert (front|back)\.0\.1\.0 at /ip4/", "client.log")
    terminal.wait_for(r"ReassignmentMonitorThread started for expert (front|back)\.0\.1\.0", "server_2.log")
    said = (terminal.logs / "client.log").read_text() + (terminal.logs / "server_0.log").read_text()
    for line in LOG_LINES:
        assert re.search(line.pattern, said, re.MULTILINE), line.shown
    for process in (second, first):
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, output
    page = (ROOT / "docs/operating.md").read_text()
    for path in terminal.logs.iterdir():
        assert re.sub(r"_\d+\.log$", "_*.log", path.name) in page or path.name in (
            "metrics",
            "monitor.key",
        ), path
