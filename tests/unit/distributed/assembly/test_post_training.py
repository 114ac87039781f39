"""`--ptq`: from a float model file to two figures, in one command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distqat.checkpoint.assembled_model import join, read_model, write_model
from distqat.config import load_config
from distqat.data.open_source import open_source
from distqat.distributed.assembly.post_training import quantize_and_judge
from distqat.distributed.assembly.stage_factory import build_task
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.errors import QuantError
from distqat.launch.evaluate_command import main as evaluate
from distqat.launch.run_local import main as run_local

FAST = {
    "diloco.inner_optim.type": "adamw",
    "diloco.inner_optim.adam_lr": 1e-2,
    "diloco.lr_schedule": "constant",
    "diloco.warmup_steps": 0,
}
FLAGS = ["--data-img-size=8", "--quant-weight-bits=8"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A perceptron that was trained in float for some steps."""
    config = load_config("configs/mlp.yaml", {"quant.enabled": False, "data.img_size": 8, **FAST})
    trainer = BaselineTrainer(config, torch.device("cpu"), samples=1920)
    source, task = open_source(config.data, seed=0), build_task(config)
    for _ in range(60):
        trainer.step([task.collate([item.sample for item in source.take(32)])])
    path = tmp_path_factory.mktemp("float") / "model.safetensors"
    write_model(path, join({name: m.state_dict() for name, m in trainer.model.stages.items()}), {})
    return path


def test_eight_bits_keep_the_quality_and_two_lose_some(model: Path) -> None:
    judged = {}
    for bits in (8, 2):
        bits_of = {"quant.weight.bits": bits, "quant.activation.bits": bits, "quant.first_last_bits": bits}
        config = load_config("configs/mlp.yaml", {"quant.enabled": True, "data.img_size": 8, **bits_of})
        judged[bits] = quantize_and_judge(config, read_model(model))
    assert judged[8]["float"] == judged[2]["float"]
    assert judged[8]["float"].value > 0.7
    assert judged[8]["ptq"].value > judged[8]["float"].value - 0.02
    assert judged[2]["ptq"].loss > judged[8]["ptq"].loss
    off = load_config("configs/mlp.yaml", {"quant.enabled": False, "data.img_size": 8})
    with pytest.raises(QuantError, match="section 'quant', which is off"):
        quantize_and_judge(off, read_model(model))


def test_both_commands_print_both(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = "--config-path=configs/mlp.yaml"
    assert evaluate([str(model), "--ptq", "--json", config, *FLAGS, "--quant-enabled"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["weights"] for line in told] == ["float", "ptq"]
    assert run_local([f"--ptq={model}", config, *FLAGS, "--quant-enabled"]) == 0
    assert "weights ptq" in capsys.readouterr().out
    assert evaluate(["--ptq", config, "--quant-enabled"]) == 2
    assert "a checkpoint folder" in capsys.readouterr().err
