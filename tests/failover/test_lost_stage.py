"""All replicas of every stage die at once: their successors bring the newest round back from disk."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
    pytest.mark.timeout(170),
]
ROOT = Path(__file__).parents[2]
ROUNDS = 30


def until(condition: Callable[[], bool], what: str, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)  # a poll with a deadline: the launcher is another process


def servers(launcher: int) -> list[int]:
    found = []
    for process in psutil.Process(launcher).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith("distqat server "):
                found.append(process.pid)
    return found


def test_a_swarm_goes_on_from_its_checkpoints(tmp_path: Path) -> None:
    logs, mark = tmp_path / "logs", tmp_path / "run"
    launcher = subprocess.Popen(
        [
            *(sys.executable, "run_local.py", "--config-path=configs/mlp.yaml", "--no-progress"),
            *("--monitor-port=0", "--client-port=0", "--server-base-port=0"),
            *(f"--diloco-outer-steps={ROUNDS}", "--diloco-inner-steps=10"),
            *(f"--log-dir={logs}", f"--param-mirror-checkpoint-dir={tmp_path / 'checkpoints'}"),
        ],
        cwd=ROOT,
        env={**os.environ, "XDG_RUNTIME_DIR": str(mark)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        client = logs / "client.log"
        said = lambda text: client.exists() and text in client.read_text()  # noqa: E731
        until(lambda: said("Round 3 of front committed") and said("Round 3 of back committed"), "round 3")
        killed = servers(launcher.pid)
        assert len(killed) == 4
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        output, _ = launcher.communicate(timeout=120)
    finally:
        launcher.kill()
    assert launcher.returncode == 0, output
    text = client.read_text()
    for stage in ("front", "back"):
        line = next(line for line in text.splitlines() if f"stage {stage} was lost and goes on from" in line)
        assert int(line.partition("from round ")[2].partition(",")[0]) >= 2
    restored = [log for log in logs.glob("server_*.log") if " restored round " in log.read_text()]
    assert restored
    summary = json.loads((logs / "summary.json").read_text())
    assert summary["rounds"] == ROUNDS
    assert summary["accuracy"] > 0.4
