"""A baseline whose ending is cut short does not train again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distqat.config import Config, load_config
from distqat.distributed import baseline
from distqat.distributed.assembly.evaluation import NotJudged, build_all
from distqat.distributed.baseline import train_locally
from distqat.distributed.training import baseline_result
from distqat.distributed.training.baseline_result import (
    BaselineFigures,
    conclude_baseline,
    trained_before,
    write_trained,
)
from distqat.errors import RunFailed
from distqat.process import RoleParameters

FIGURES = BaselineFigures(2.3, 0.4, 640, 8.0)
RUN = 1000


@pytest.fixture
def config(tmp_path: Path) -> Config:
    places = {"param_mirror.checkpoint_dir": str(tmp_path / "ck"), "log_dir": str(tmp_path / "logs")}
    (tmp_path / "logs").mkdir()
    return load_config("configs/mlp.yaml", {**places, "quant.enabled": False})


def other_weights(config: Config) -> dict[str, nn.Module]:
    modules = build_all(config)
    with torch.no_grad():
        for module in modules.values():
            for parameter in module.parameters():
                parameter.fill_(0.5)
    return modules


def summary(config: Config) -> dict[str, Any]:
    return dict(json.loads((Path(config.log_dir) / "summary.json").read_text()))


async def test_the_next_life_judges_what_is_there(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one was killed after the model was written, as it was judged."""
    trained = await write_trained(config, other_weights(config), FIGURES, RUN)
    stages = build_all(config)
    assert trained_before(config, stages, RUN) == trained
    assert all((p == 0.5).all() for stage in stages.values() for p in stage.parameters())

    async def never(*_: Any) -> BaselineFigures:
        raise AssertionError("it trains again")

    monkeypatch.setattr(baseline, "_train", never)
    assert await train_locally(config, asyncio.Event(), RoleParameters(generation=RUN)) == 0
    said = summary(config)
    assert (said["samples"], said["seconds"], said["evaluation_error"]) == (640, 8.0, "")
    assert said["heldout_samples"] == 359
    assert trained_before(config, stages, RUN) is None  # all is told: the next start is another run


async def test_a_judgement_that_fails_ends_it(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline_result, "judge_or_say", lambda *_: NotJudged("cut short"))
    trained = await write_trained(config, other_weights(config), FIGURES, RUN)
    with pytest.raises(RunFailed, match=r"saved as .*model\.safetensors, but it could not be judged: cut"):
        await conclude_baseline(config, build_all(config), trained)
    assert summary(config)["evaluation_error"] == "cut short"


async def test_the_model_of_another_run_is_not_taken(config: Config) -> None:
    trained = await write_trained(config, other_weights(config), FIGURES, RUN)
    stages = build_all(config)
    for other in (2000, None):
        assert trained_before(config, stages, other) is None
    assert trained_before(config, stages, RUN) == trained
    trained.path.write_bytes(b"cut short")
    assert trained_before(config, stages, RUN) is None
