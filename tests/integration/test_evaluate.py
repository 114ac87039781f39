"""`distqat evaluate` on what a run left, and on a swarm that still trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distqat.config import load_config
from distqat.distributed.assembly.evaluation import build_all, judge
from distqat.distributed.coordination.model_saving import save_model
from distqat.launch.evaluate_command import main

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.timeout(90)]
FLAGS = ("--config-path", str(ROOT / "configs" / "mlp.yaml"))


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, float]:
    """A model file of random weights, and what it is worth."""
    config = load_config(FLAGS[1], {"param_mirror.checkpoint_dir": str(tmp_path)})
    modules = build_all(config)
    return save_model(config, modules), judge(config, modules).value


def test_a_model_file(model: tuple[Path, float], capsys: pytest.CaptureFixture[str]) -> None:
    path, worth = model
    assert main([str(path), "--json", *FLAGS]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["metric"], said["value"], said["count"]) == ("accuracy", worth, 359)
    assert main([str(path), *FLAGS]) == 0
    assert capsys.readouterr().out.startswith(f"accuracy {worth:.4f} on 359 held-out samples, loss ")


def test_what_cannot_be_judged(model: tuple[Path, float], capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = model
    broken = path.with_name("broken.safetensors")
    broken.write_bytes(path.read_bytes()[:100])
    cases = [
        ((), 2, "give a checkpoint folder"),
        ((str(path), "--initial-peers=/ip4/127.0.0.1/tcp/1/p2p/Qm"), 2, "give a checkpoint folder"),
        ((str(path.with_name("none")),), 1, "there is no checkpoint folder and no model file"),
        ((str(broken),), 1, "is not a model file"),
        ((str(path), "--config-path", str(ROOT / "configs" / "resnet18.yaml")), 1, "--config-path"),
    ]
    for words, code, said in cases:
        assert main([*FLAGS, *words]) == code
        assert said in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_swarm_that_trains(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    logs = tmp_path / "logs"
    swarm = subprocess.Popen(
        [
            sys.executable, "run_local.py", *FLAGS, f"--log-dir={logs}", "--replicas=1", "--monitor-port=0",
            "--client-port=0", "--server-base-port=0", "--diloco-outer-steps=5000",
            f"--param-mirror-checkpoint-dir={tmp_path / 'ck'}",
        ],
        cwd=ROOT, env=environment, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        log, deadline = logs / "client.log", time.monotonic() + 60
        while not (log.exists() and "Trainer 0 Step #10 " in log.read_text()):
            assert time.monotonic() < deadline
            assert swarm.poll() is None
            time.sleep(0.1)
        peers = (logs / "initial_peers.txt").read_text().strip()
        judged = subprocess.run(
            [
                sys.executable, "-m", "distqat.launch.cli", "evaluate", *FLAGS,
                f"--initial-peers={peers}", "--json",
            ],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert judged.returncode == 0, judged.stderr
        said = json.loads(judged.stdout.splitlines()[-1])
        assert said["count"] == 359
        assert 0 <= said["value"] <= 1
        assert min(said["rounds"].values()) >= 1
        assert torch.isfinite(torch.tensor(said["loss"]))
    finally:
        swarm.terminate()
        swarm.wait(timeout=30)
