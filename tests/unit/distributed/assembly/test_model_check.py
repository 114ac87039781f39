"""The first batch against the model, by shapes alone; and the gate that keeps servers out meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from distqat.config import Config
from distqat.distributed.assembly.model_check import Told, check_batch, tell
from distqat.distributed.assembly.stage_factory import build_task
from distqat.distributed.coordination import preflight as gates
from distqat.distributed.coordination.preflight import Preflight
from distqat.errors import ConfigError
from distqat.tasks import Batch, Phase, Task

FRONT, BACK = ({"model_name": f"mlp.{stage}", "num_classes": 10} for stage in ("front", "back"))


def run(*entries: dict[str, Any], **data: Any) -> Config:
    given = {"img_size": 8, "num_channels": 1, **data}
    quant = {"enabled": False}
    return Config.model_validate({"data": given, "quant": quant, "model_pipeline": {"pipeline": [*entries]}})


def told(config: Config, batch: Batch) -> Told:
    return tell(build_task(config), batch)


IMAGES = Batch({"x": torch.rand(3, 1, 8, 8)}, {"y": torch.tensor([1, 2, 3])}, 3)
TOKENS = Batch({"x": torch.zeros(3, 16, dtype=torch.int64)}, {"y": torch.zeros(3, 16, dtype=torch.int64)}, 3)


def test_a_batch_that_fits_says_nothing() -> None:
    config = run(FRONT, BACK)
    assert told(config, IMAGES) == {
        "inputs": {"x": ("float32", [3, 1, 8, 8])},
        "labels": {"y": ("int64", [3])},
    }
    check_batch(config, told(config, IMAGES))


@pytest.mark.parametrize(
    ("config", "batch", "said"),
    [
        (
            run(FRONT),
            IMAGES,
            r"the last stage gives \d+ numbers per sample, but num_classes is 10: .* last stage",
        ),
        (
            run(BACK),
            IMAGES,
            r"the first stage, 'mlp\.back', cannot take a batch of data\.task_type 'cv', .*64",
        ),
        (
            run(FRONT, BACK, task_type="llm", sequence_length=16),
            TOKENS,
            r"the first stage, 'mlp\.front', cannot take a batch of .*'llm', .*int64.*choose the task",
        ),
    ],
    ids=["no last stage", "no first stage", "another task"],
)
def test_what_does_not_fit_is_said(config: Config, batch: Batch, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_batch(config, told(config, batch))


def test_of_a_batch_in_phases_the_first_is_told() -> None:
    class TwoSteps(Task):
        def phases(self, batch: Batch) -> list[tuple[Phase, Batch]]:
            noise = Batch({"z": torch.rand(3, 5)}, batch.labels, 3)
            return [(Phase("one"), noise), (Phase("two"), batch)]

    assert tell(TwoSteps(), IMAGES)["inputs"] == {"z": ("float32", [3, 5])}


async def test_the_gate_opens_when_the_checks_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "HOLD_S", 0.01)
    config = run(FRONT, BACK)
    gate, ready = Preflight(config), asyncio.get_running_loop().create_future()

    async def data_ready() -> dict[str, Any]:
        return dict(await ready)

    checking = asyncio.ensure_future(gate.check(data_ready))
    assert not await gate.passed()
    ready.set_result({"batch": told(config, IMAGES)})
    await checking
    assert await gate.passed()
    assert gate.told is None


async def test_the_gate_stays_shut_when_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "HOLD_S", 0.01)
    gate = Preflight(run(FRONT, BACK))

    async def data_ready() -> dict[str, Any]:
        return {"batch": told(run(FRONT, BACK), TOKENS)}

    with pytest.raises(ConfigError, match="cannot take a batch"):
        await gate.check(data_ready)
    assert not await gate.passed()


async def test_in_a_local_run_the_servers_check() -> None:
    gate = Preflight(run(FRONT, BACK), by_servers=True)
    batch = told(run(FRONT, BACK), TOKENS)

    async def data_ready() -> dict[str, Any]:
        return {"batch": batch}

    await gate.check(data_ready)
    assert gate.told == batch
    assert await gate.passed()


async def test_a_run_that_goes_on_hears_from_its_servers_first() -> None:
    gate = Preflight(run(FRONT, BACK))
    await gate.check(None)
    assert await gate.passed()
