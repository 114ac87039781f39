"""A small swarm of real processes: it learns, replicas agree after every round, nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors import safe_open

from distqat.config import load_config
from distqat.distributed.assembly.stage_factory import build_module

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for leftovers in /proc"),
    pytest.mark.timeout(90),
]
ROOT = Path(__file__).parents[2]
ROUNDS, STAGES, REPLICAS = 24, ("front", "back"), 2


def records(folder: Path, pattern: str) -> list[dict[str, Any]]:
    lines = [line for path in folder.glob(pattern) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def run_and_watch(command: list[str], env: dict[str, str]) -> tuple[int, str, set[psutil.Process]]:
    """Exit code, output, and every process that was ever seen below the command."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    seen: set[psutil.Process] = set()
    deadline = time.monotonic() + 80
    try:
        while True:
            with contextlib.suppress(psutil.Error):
                seen.update(psutil.Process(process.pid).children(recursive=True))
            try:
                output, _ = process.communicate(timeout=0.2)
                return process.returncode, output, seen
            except subprocess.TimeoutExpired:
                assert time.monotonic() < deadline, "the run takes too long"
    finally:
        process.kill()


def still_there(process: psutil.Process) -> bool:
    """A zombie that waits for PID 1 counts as gone."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_two_stages_two_replicas(tmp_path: Path) -> None:
    shared_memory = set(Path("/dev/shm").iterdir())
    code, output, processes = run_and_watch(
        [
            sys.executable,
            "run_local.py",
            "--config-path=configs/mlp.yaml",
            *("--monitor-port=0", "--client-port=0", "--server-base-port=0"),
            *(
                f"--diloco-outer-steps={ROUNDS}",
                "--diloco-inner-steps=10",
                "--diloco-inner-optim-adam-lr=5e-3",
                "--eval-every=8",
            ),
            f"--log-dir={tmp_path / 'logs'}",
            f"--param-mirror-checkpoint-dir={tmp_path / 'checkpoints'}",
        ],
        {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "run")},
    )
    assert code == 0, output

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

    looks = [r for r in records(metrics, "client.jsonl") if r["event"] == "evaluation"]
    assert looks  # a look that takes longer than eval_every rounds leaves one out
    for look, due in zip(looks, (8, 16), strict=False):
        assert look["round"] >= due
    assert {(look["metric"], look["count"]) for look in looks} == {("accuracy", summary["heldout_samples"])}

    client_log = (tmp_path / "logs" / "client.log").read_text()
    for said in ("Found expert front.0.0.0 at /ip4/127.0.0.1/tcp/", "Complete pipelines: 2 - [0, 1]"):
        assert said in client_log
    assert "Spawned trainer 0 with PID " in client_log
    assert "Trainer 0 Step #1 loss = " in client_log
    assert "ReassignmentMonitorThread started for expert " in (tmp_path / "logs" / "server_0.log").read_text()

    assert len(processes) > 15  # monitor, client, data server, trainers, servers and their daemons
    _, alive = psutil.wait_procs(processes, timeout=2)
    assert [process for process in alive if still_there(process)] == []
    assert [path.name for path in (tmp_path / "run" / "distqat").glob("*.sock")] == []
    assert set(Path("/dev/shm").iterdir()) <= shared_memory
