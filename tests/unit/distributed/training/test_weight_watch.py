"""Figures of quantized weights reach the metrics of every round, and the person at the terminal once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import torch
from tests.failover.round_scene import RoundSwarm, one_stage
from torch import nn

from distqat.checkpoint.assembled_model import read_model
from distqat.config import load_config
from distqat.distributed.baseline import train_locally
from distqat.distributed.training import weight_watch
from distqat.distributed.training.weight_watch import WeightWatch
from distqat.process import RoleParameters
from distqat.quant import QuantOptions, WeightQuantizer, activate, quantize_module, quantizers
from distqat.quant.weight_health import WeightHealth

FIGURES = {
    "layers", "sick", "error_median", "error_max", "clipped_median", "clipped_max", "range_used_median",
    "range_used_min", "codes_used_median", "codes_used_min", "worst",
}  # fmt: skip


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    heard: list[str] = []
    monkeypatch.setattr(weight_watch, "notice", heard.append)
    return heard


def shrink_steps(module: nn.Module) -> None:
    """Weights are far outside of their codes then, and steps follow only weights that are trained."""
    module.eval()
    with torch.no_grad():
        for _, quantizer in quantizers(module):
            if isinstance(quantizer, WeightQuantizer):
                quantizer.freeze()
                quantizer.log_step -= 3


def test_an_ailment_is_told_once(said: list[str]) -> None:
    module, watch = nn.Sequential(nn.Linear(16, 8)), WeightWatch("front")
    options = QuantOptions.model_validate({"skip": [], "activation": {"method": "none"}})
    quantize_module(module, options, stage="front", first=True, last=True)
    assert watch.look(module) == {}
    activate(module)
    assert watch.look(module).keys() == FIGURES
    assert said == []
    shrink_steps(module)
    assert watch.look(module, tells=False)["sick"] == 1
    assert said == []
    for _ in range(2):
        assert watch.look(module)["worst"] == "0"
    assert [sentence.partition(" in ")[0] for sentence in said] == [
        "stage front: weights have outgrown their steps"
    ]


async def test_every_member_writes_them_down_and_one_tells(
    said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sick = WeightHealth("fc", 8, error=0.2, clipped=0.36, largest_code=127, codes_used=1.0)
    async with RoundSwarm(one_stage(quantize=True), tmp_path, 2) as swarm:
        (record, other) = await swarm.round(0)
        assert record["weights"].keys() == other["weights"].keys() == FIGURES
        assert (record["weights"]["sick"], said) == (0, [])
        monkeypatch.setattr(weight_watch, "weight_health", lambda _: [sick])
        records = await swarm.round(1)
    assert [record["weights"]["clipped_max"] for record in records] == [0.36, 0.36]
    assert len(said) == 1


async def test_a_baseline_writes_them_as_often_as_a_swarm_has_rounds(tmp_path: Path) -> None:
    places = {"param_mirror.checkpoint_dir": str(tmp_path / "ck"), "log_dir": str(tmp_path / "logs")}
    quant = {"quant.enabled": True, "quant.warmup.calibrate_batches": 2}
    config = load_config("configs/mlp.yaml", {**places, **quant})
    parameters = RoleParameters(samples=12 * config.diloco.batch_size_per_step)
    assert await train_locally(config, asyncio.Event(), parameters) == 0
    lines = (tmp_path / "logs" / "metrics" / "trainer_0.jsonl").read_text().splitlines()
    found = [record for line in lines if (record := json.loads(line))["event"] == "weights"]
    assert [record["step"] for record in found] == [5, 10]
    assert found[0]["weights"].keys() == {"front", "back"}
    assert found[0]["weights"]["front"].keys() == FIGURES
    saved = read_model(Path(config.checkpoint_dir) / "model.safetensors")
    weight, log_step = saved["layer1.weight"], saved["layer1.weight_quant.log_step"]
    largest = weight.abs().amax(1) / log_step.exp()
    torch.testing.assert_close(largest, torch.full_like(largest, 127.0))  # steps of the last weights
