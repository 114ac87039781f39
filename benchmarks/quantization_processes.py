"""The row of benchmarks/quantization.py that real processes make: `run_local.py` with four replicas."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from benchmarks.quantization_work import Digits, Work
from benchmarks.report import ROOT
from distqat.checkpoint.assembled_model import read_model
from distqat.distributed.assembly.evaluation import build_all, load_all

PLUGIN = Path(__file__).with_name("augmented_digits.py")


def processes(work: Work, quant: Mapping[str, Any] | None, replicas: int) -> nn.Module:
    """The model that a swarm on this machine leaves behind. RuntimeError when the command fails."""
    assert isinstance(work, Digits)
    config = work.config(quant)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        body = config.model_dump(mode="json", exclude_unset=True)
        body["data"]["dataset_name"] = "augmented_digits"
        body["plugins"] = [str(PLUGIN)]
        body["world_size"] = replicas
        (folder / "run.yaml").write_text(yaml.safe_dump(body), encoding="utf-8")
        command = [sys.executable, "run_local.py", "--config-path", str(folder / "run.yaml"), "--no-progress"]
        command += ["--log-dir", str(folder / "logs")]
        command += ["--param-mirror-checkpoint-dir", str(folder / "checkpoints")]
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # the plugin imports from here
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = "\n".join(
                path.read_text(encoding="utf-8")[-800:] for path in (folder / "logs").glob("*.log")
            )
            raise RuntimeError(
                f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-800:]}\n{said}"
            )
        (model,) = (folder / "checkpoints").rglob("model.safetensors")
        modules = build_all(config)
        load_all(modules, read_model(model))
    return modules[config.stages[0]].eval()
