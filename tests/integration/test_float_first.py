"""A swarm of real processes that trains in float first: quantizers appear, though a server dies meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from distqat.checkpoint.assembled_model import assemble

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds roles by their titles"),
    pytest.mark.timeout(150),
    pytest.mark.slow,
]
ROOT = Path(__file__).parents[2]
ROUNDS, IN_FLOAT = 16, 8
VICTIM = "back.0.1.0"


def entries(path: Path, kind: str) -> list[dict[str, Any]]:
    """Whole lines of the commit log."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def holder_of(launcher: int, uid: str) -> psutil.Process | None:
    for process in psutil.Process(launcher).children(recursive=True):
        try:
            if f"server {uid}" in " ".join(process.cmdline()):
                return process
        except psutil.Error:
            continue
    return None


def test_a_server_that_is_killed_while_it_counts_misses_nothing(tmp_path: Path) -> None:
    logs, checkpoints = tmp_path / "logs", tmp_path / "checkpoints"
    command = [
        sys.executable, "run_local.py", "--config-path=configs/mlp.yaml", "--no-progress",
        "--monitor-port=0", "--client-port=0", "--server-base-port=0",
        f"--diloco-outer-steps={ROUNDS}", "--diloco-inner-steps=10", "--diloco-lr-schedule=cooldown",
        f"--quant-warmup-float-share={IN_FLOAT / ROUNDS}",
        f"--log-dir={logs}", f"--param-mirror-checkpoint-dir={checkpoints}",
    ]  # fmt: skip
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    output = tmp_path / "output.txt"
    with output.open("wb") as file:
        run = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env=environment)
    try:
        killed = False
        while run.poll() is None:
            reached = [
                e["round"] for e in entries(logs / "commit_log.jsonl", "round") if e["stage"] == "back"
            ]
            if not killed and reached and max(reached) >= IN_FLOAT - 1:
                victim = holder_of(run.pid, VICTIM)
                if victim is not None:
                    victim.send_signal(signal.SIGKILL)
                    killed = True
            time.sleep(0.005)
        said = output.read_text()
        assert run.returncode == 0, said
        assert killed
    finally:
        run.kill()
        run.wait()

    metrics = [p.read_text().splitlines() for p in (logs / "metrics").glob("server_*.jsonl")]
    records = [json.loads(line) for lines in metrics for line in lines]
    assert not [record for record in records if record.get("outcome") == "calibrated"]
    logged = {(e["stage"], e["round"]): e["digest"] for e in entries(logs / "commit_log.jsonl", "round")}
    for record in records:
        if record["event"] == "round" and record["committed"]:
            assert record["digest"] == logged[record["uid"].partition(".")[0], record["round"]]
    states = {n: int(t) for n, t in assemble(checkpoints).tensors.items() if n.endswith("state_code")}
    assert set(states.values()) == {2}, states
    servers = "".join(path.read_text() for path in logs.glob("server_*.log"))
    for stage in ("front", "back"):
        assert f"trains in float for {IN_FLOAT} of {ROUNDS} rounds" in servers
        assert f"stage {stage} is quantized from here on" in servers
    phases = [json.loads(line) for p in (logs / "metrics").glob("trainer_*") for line in p.open()]
    assert "training" in {record["phase"] for record in phases if record["event"] == "phase"}
