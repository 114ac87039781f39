"""A small swarm of real processes: it learns, replicas agree after every round, nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors import safe_open

from distqat.config import load_config
from distqat.distributed.building import build_module

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for leftovers in /proc"),
    pytest.mark.timeout(90),
]
ROOT = Path(__file__).parents[2]
ROUNDS, STAGES, REPLICAS = 24, ("front", "back"), 2


def records(folder: Path, pattern: str) -> list[dict[str, Any]]:
    lines = [line for path in folder.glob(pattern) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def of_this_run(mark: Path) -> list[psutil.Process]:
    """Processes whose environment names our runtime folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("XDG_RUNTIME_DIR") == str(mark) and process.status() != "zombie":
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_two_stages_two_replicas(tmp_path: Path) -> None:
    shared_memory = set(Path("/dev/shm").iterdir())
    run = subprocess.run(
        [
            sys.executable,
            "run_local.py",
            "--config-path=configs/mlp.yaml",
            *("--monitor-port=0", "--client-port=0", "--server-base-port=0"),
            *(
                f"--diloco-outer-steps={ROUNDS}",
                "--diloco-inner-steps=10",
                "--diloco-inner-optim-adam-lr=5e-3",
            ),
            f"--log-dir={tmp_path / 'logs'}",
            f"--param-mirror-checkpoint-dir={tmp_path / 'checkpoints'}",
        ],
        cwd=ROOT,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "run")},
        capture_output=True,
        text=True,
        timeout=80,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr

    metrics = tmp_path / "logs" / "metrics"
    steps = [r for r in records(metrics, "trainer_*.jsonl") if r["event"] == "step"]
    losses = [step["loss"] for step in sorted(steps, key=lambda step: step["time"])]
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]
    summary = json.loads((tmp_path / "logs" / "summary.json").read_text())
    assert summary["accuracy"] > 0.4  # ten classes: chance is 0.1
    assert summary["samples"] == sum(step["samples"] for step in steps)

    committed = {
        (r["stage"], r["round"]): r for r in records(metrics, "client.jsonl") if r["event"] == "round"
    }
    assert {(stage, number) for stage in STAGES for number in range(1, ROUNDS + 1)} <= committed.keys()
    digests: dict[tuple[str, int], set[str]] = defaultdict(set)
    witnesses: dict[tuple[str, int], int] = defaultdict(int)
    for record in records(metrics, "server_*.jsonl"):
        if record["event"] == "round" and record["committed"]:
            key = record["uid"].partition(".")[0], record["round"]
            digests[key].add(record["digest"])
            witnesses[key] += 1
    for key, seen in digests.items():
        assert seen == {committed[key]["digest"]}, key
    together = sum(count == REPLICAS for count in witnesses.values())
    assert together >= len(STAGES) * ROUNDS // 3, witnesses  # the second pipeline starts a little later

    config = load_config(ROOT / "configs" / "mlp.yaml", {})
    with safe_open(summary["model"], "pt") as model:
        names = {name for stage in STAGES for name in build_module(config, stage).state_dict()}
        assert set(model.keys()) == names

    client_log = (tmp_path / "logs" / "client.log").read_text()
    for said in ("Found expert front.0.0.0 at /ip4/127.0.0.1/tcp/", "Complete pipelines: 2 - [0, 1]"):
        assert said in client_log
    assert "Spawned trainer 0 with PID " in client_log
    assert "Trainer 0 Step #1 loss = " in client_log
    assert "ReassignmentMonitorThread started for expert " in (tmp_path / "logs" / "server_0.log").read_text()

    assert of_this_run(tmp_path / "run") == []
    assert [path.name for path in (tmp_path / "run" / "distqat").glob("*.sock")] == []
    assert set(Path("/dev/shm").iterdir()) <= shared_memory
