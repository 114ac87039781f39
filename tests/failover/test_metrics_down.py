"""Row 25 of the fault table: the metrics service is down, or takes connections and never answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.failover.process_swarm import ROOT

pytestmark = pytest.mark.timeout(240)
FAKE = ROOT / "tests/failover/fake_wandb"
ROUNDS = 4


def train(folder: Path, port: int) -> tuple[float, str]:
    """A short run that wants to record to W&B; how long it took, and what it said."""
    command = [
        *(sys.executable, "run_local.py", "--config-path=configs/mlp.yaml", "--no-progress", "--replicas=1"),
        *("--monitor-port=0", "--client-port=0", "--server-base-port=0", "--wandb-project=nowhere"),
        *(f"--diloco-outer-steps={ROUNDS}", "--diloco-inner-steps=5"),
        *(f"--log-dir={folder / 'logs'}", f"--param-mirror-checkpoint-dir={folder / 'checkpoints'}"),
    ]
    fake = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "FAKE_WANDB_PORT": str(port)}
    path = os.pathsep.join([str(FAKE), os.environ.get("PYTHONPATH", "")])
    began = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **fake, "PYTHONPATH": path, "XDG_RUNTIME_DIR": str(folder / "run")},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((folder / "logs" / "summary.json").read_text())
    assert summary["rounds"] == ROUNDS
    assert len((folder / "logs" / "metrics" / "trainer_0.jsonl").read_text().splitlines()) >= ROUNDS * 5
    return time.monotonic() - began, "".join(p.read_text() for p in (folder / "logs").glob("*.log"))


def test_a_service_that_never_answers(tmp_path: Path) -> None:
    """Metrics wait in a bounded queue; training and its end do not."""
    with socket.create_server(("127.0.0.1", 0)) as service:
        accepted: list[socket.socket] = []

        def listen() -> None:
            while True:
                try:
                    accepted.append(service.accept()[0])
                except OSError:
                    return

        threading.Thread(target=listen, daemon=True).start()
        seconds, said = train(tmp_path, service.getsockname()[1])
        print(f"{seconds:.1f} s in all, {len(accepted)} connections that got no answer")
        assert accepted, "the service was asked"
        for connection in accepted:
            connection.close()
        service.shutdown(socket.SHUT_RDWR)
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_service_that_is_down(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as service:
        port = service.getsockname()[1]
    seconds, said = train(tmp_path, port)
    print(f"{seconds:.1f} s in all")
    assert said.count("W&B cannot be reached") == 2, "once by the monitor, once by the client"
    assert "Traceback" not in said
