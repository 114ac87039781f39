"""A run that starts from a trained model: its weights by name, whatever the cut; another model is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.failover.memory_scene import batches
from torch import Tensor

from distqat.checkpoint import CheckpointStore, ShardState
from distqat.checkpoint.assembled_model import join, write_model
from distqat.config import (
    Config,
    agreement,
    agreement_digest,
    check_start_from,
    load_config,
    run_settings,
    with_run_settings,
)
from distqat.distributed.assembly.evaluation import build_all
from distqat.distributed.assembly.model_check import check_run
from distqat.distributed.assembly.starting_weights import check_start, load_start
from distqat.distributed.serving.bootstrap import Bootstrap
from distqat.distributed.serving.committed_state import initial
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.errors import ConfigError
from distqat.quant import quantizers

CUT, WHOLE = "configs/mlp.yaml", "configs/mlp_full.yaml"


def config(file: str = CUT, **changes: Any) -> Config:
    return load_config(file, {"data.img_size": 8, **{k.replace("__", "."): v for k, v in changes.items()}})


def states(config: Config) -> dict[str, dict[str, Tensor]]:
    return {stage: module.state_dict() for stage, module in build_all(config).items()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Of a run in float with another seed."""
    path = tmp_path / "model.safetensors"
    write_model(path, join(states(config(seed=7, quant__enabled=False))), {})
    return path


def expected() -> dict[str, Tensor]:
    return join(states(config(seed=7, quant__enabled=False)))


def loaded(config: Config) -> dict[str, Tensor]:
    check_start(config)
    modules = build_all(config)
    load_start(config, modules)
    assert {q.state for module in modules.values() for _, q in quantizers(module)} <= {"calibrating"}
    return join({stage: module.state_dict() for stage, module in modules.items()})


def assert_started(found: dict[str, Tensor]) -> None:
    for name, tensor in expected().items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("file", [CUT, WHOLE])
@pytest.mark.parametrize("enabled", [True, False])
def test_weights_are_those_of_the_model_in_any_cut(model: Path, file: str, enabled: bool) -> None:
    assert_started(loaded(config(file, start_from=str(model), quant__enabled=enabled)))
    assert_started(loaded(config(file, start_from=str(model.parent), quant__enabled=enabled)))


def test_rounds_of_a_checkpoint_folder_and_of_a_quantized_run_do_as_well(tmp_path: Path) -> None:
    run, folder = config(seed=7), tmp_path / "checkpoints"
    for stage, module in build_all(run).items():
        for _, quantizer in quantizers(module):
            quantizer.begin(torch.full_like(quantizer.log_step, 0.5))
        shared, said = initial(module), agreement(run, stage)
        state = ShardState(1, 0, 0, shared.digest, shared.tensors(), said, agreement_digest(run, stage))
        CheckpointStore(folder, run.experiment_prefix, stages=run.stages).write(stage, state)
    assert_started(loaded(config(start_from=str(folder))))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__img_size": 16}, "'layer1.weight' of stage 'front' has shape"),
        ({"file": "configs/resnet18.yaml"}, "'conv1.weight' of stage 'front' is missing"),
    ],
)
def test_another_model_is_refused_before_anything_starts(
    model: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"start_from: .*{said}"):
        check_run(config(start_from=str(model), **changes))


def test_codes_are_no_weights_and_another_file_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    codes = {name: tensor.to(torch.int8) for name, tensor in expected().items()}
    write_model(path, codes, {})
    with pytest.raises(ConfigError, match=r"has shape .* of torch.int8"):
        check_start(config(start_from=str(path)))
    path.write_text("no model")
    with pytest.raises(ConfigError, match=r"start_from: .*is not a model file"):
        check_start(config(start_from=str(path)))
    path.unlink()
    with pytest.raises(ConfigError, match=r"start_from: .*holds no round that can be assembled"):
        check_start(config(start_from=str(tmp_path)))


def test_a_host_without_the_file_serves_but_does_not_found(tmp_path: Path) -> None:
    away = config(start_from=str(tmp_path / "elsewhere"))
    check_run(away)
    with pytest.raises(ConfigError, match=r"to give front the first weights, and there is no .*copy it here"):
        load_start(away, {"front": build_all(away)["front"]})
    with pytest.raises(ConfigError, match="there is no checkpoint folder and no model file"):
        check_start_from(away)
    check_start_from(config())


def test_the_client_says_where_a_run_starts_from(model: Path) -> None:
    told = run_settings(config(start_from=str(model)))
    assert with_run_settings(config(), told).start_from == str(model)


async def test_a_founder_publishes_these_weights_as_round_0(model: Path) -> None:
    given = config(start_from=str(model), quant__warmup__float_share=0.5)
    modules, asked = build_all(given), []

    class Coordinator:
        async def insist(self, request: Any) -> None:
            asked.append(request)

    class Host:
        uid, stage, coordinator = "front.0.0.0", "front", Coordinator()
        replica = SimpleNamespace(module=modules["front"], calibrating=False)

        async def between_steps(self, job: Any) -> Any:
            return job()

    async def never() -> None:
        raise AssertionError("nothing is calibrated before training in float")

    def prepare() -> None:
        load_start(given, {"front": modules["front"]})

    slot: Any = SimpleNamespace()
    shared = await Bootstrap(Host(), slot, slot, never, prepare=prepare).found()  # type: ignore[arg-type]
    assert [request.digest for request in asked] == [shared.digest]
    assert shared.round == 0
    assert torch.equal(shared.anchor["layer1.weight"], expected()["layer1.weight"])


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_baseline_starts_from_them_and_is_quantized(model: Path, share: float) -> None:
    """With a share, after that; else on the first batches, which take no steps."""
    given = config(start_from=str(model), quant__warmup__float_share=share)
    trainer = BaselineTrainer(given, torch.device("cpu"))
    assert_started(join({name: stage.state_dict() for name, stage in trainer.model.stages.items()}))
    shown = batches(given, 20)
    while trainer.calibrates:
        trainer.calibrate(shown.pop())
    assert (len(shown) < 20) == (share == 0.0)
    assert trainer.step(shown.pop()) > 0
