"""quant.teacher: what is refused before a slot is granted, and who gets which teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from distqat.config import Config, agreement, check_teacher_path, structure
from distqat.distributed.assembly.evaluation import build_all, load_all
from distqat.distributed.assembly.model_check import check_run
from distqat.distributed.assembly.stage_factory import build_module
from distqat.distributed.assembly.teacher_model import build_served, check_founder
from distqat.distributed.coordination.model_saving import save_model
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.errors import ConfigError
from distqat.models.teacher import teacher_of
from distqat.tasks import Batch


def run(
    teacher: object = None,
    stages: tuple[str, ...] = ("front", "back"),
    *,
    task: str = "cv",
    enabled: bool = True,
    folder: Path | None = None,
    width: int = 16,
    **distillation: float,
) -> Config:
    pipeline = [{"model_name": f"mlp.{s}", "num_classes": 10, "hidden": width} for s in stages]
    return Config.model_validate(
        {
            "data": {"img_size": 8, "num_channels": 1, "task_type": task},
            "model_pipeline": {"pipeline": pipeline},
            "param_mirror": {"checkpoint_dir": str(folder)},
            "quant": {
                "enabled": enabled,
                "warmup": {"calibrate_batches": 1, "float_share": 0.0},
                "teacher": None if teacher is None else str(teacher),
                "distillation": distillation,
            },
        }
    )


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A model file of a float run in one stage."""
    config = run(stages=("full",), enabled=False, folder=tmp_path / "float")
    return save_model(config, build_all(config.model_copy(update={"seed": 8})))


def test_a_file_of_the_same_model_is_taken_however_it_is_cut(trained: Path) -> None:
    for given in (trained, trained.parent):
        config = run(given)
        check_run(config)
        tensors = load_file(trained)
        for stage in config.stages:
            teacher = teacher_of(build_served(config, stage))
            assert teacher is not None
            assert int(teacher.ready) == 1
            assert teacher.state.keys() <= tensors.keys()
            assert all(torch.equal(tensor, tensors[name]) for name, tensor in teacher.state.items())


def test_another_model_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"quant\.teacher: .* another model .*has shape \[16, 64\]"):
        check_run(run(trained, width=24))
    quantized = run(stages=("full",), folder=tmp_path / "quantized")
    path = save_model(quantized, build_all(quantized))
    with pytest.raises(ConfigError, match=r"was trained quantized; a teacher is trained in float"):
        check_run(run(path))
    broken = tmp_path / "broken.safetensors"
    broken.write_text("no tensors")
    with pytest.raises(ConfigError, match=r"quant\.teacher: .*is not a model file"):
        check_run(run(broken))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"quant\.teacher: .*holds no round"):
        check_run(run(tmp_path / "empty"))


def test_a_file_that_is_missing_is_missed_by_a_client_and_by_who_founds_a_stage(tmp_path: Path) -> None:
    config = run(tmp_path / "nothing.safetensors")
    said = r"quant\.teacher: there is no checkpoint folder and no model file .*nothing.*looked for"
    with pytest.raises(ConfigError, match=said):
        check_teacher_path(config)
    with pytest.raises(ConfigError, match=said):
        BaselineTrainer(config, torch.device("cpu"))
    check_run(config)  # a server that joins gets its teacher with the state
    stage = build_served(config, "front")
    with pytest.raises(ConfigError, match=said):
        check_founder(config, stage)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (run("x", task="image_gen"), r"'image_gen' has no logits over classes or tokens"),
        (run("x", stages=("full",), hidden=1.0), r"this model has one stage"),
        (run("x", share=0.0), r"share and hidden are both 0"),
        (run("self"), r"before the first step: untrained; train in float first"),
    ],
    ids=["task", "one stage", "no share", "untrained"],
)
def test_a_teacher_of_whom_nothing_can_be_learned_is_refused(config: Config, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_run(config)


def test_who_does_not_train_has_none(trained: Path, tmp_path: Path) -> None:
    config = run(trained, folder=tmp_path / "run")
    assert all(teacher_of(stage) is None for stage in build_all(config).values())
    served = {stage: build_served(config, stage) for stage in config.stages}
    path = save_model(config, served)
    assert not [name for name in load_file(path) if "teacher" in name]
    load_all(build_all(config), load_file(path))
    assert teacher_of(build_served(run(trained, enabled=False), "front")) is None
    assert teacher_of(build_served(run(trained, share=0.0, hidden=1.0), "back")) is None


def test_self_is_what_the_model_is_when_its_quantizers_begin() -> None:
    trainer = BaselineTrainer(run("self", stages=("full",)), torch.device("cpu"))
    (stage,) = trainer.model.stages.values()
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.mul_(1.5)  # trained meanwhile, or loaded
    before = {name: p.detach().clone() for name, p in stage.named_parameters() if "quant" not in name}
    teacher = teacher_of(stage)
    assert teacher is not None
    assert int(teacher.ready) == 0
    images = Batch({"x": torch.rand(4, 1, 8, 8)}, {"y": torch.arange(4)}, 4)
    while trainer.calibrates:
        trainer.calibrate([images])
    trainer.step([images])
    assert trainer.progress.distillation != 0
    assert int(teacher.ready) == 1
    assert all(torch.equal(teacher.state[name], tensor) for name, tensor in before.items())


def test_self_after_training_in_float_is_what_came_of_it() -> None:
    config = run("self", stages=("full",))
    warmup = config.quant.warmup.model_copy(update={"float_share": 0.5})
    quant = config.quant.model_copy(update={"warmup": warmup})
    diloco = config.diloco.model_copy(update={"inner_steps": 1, "outer_steps": 4})
    config = config.model_copy(update={"quant": quant, "diloco": diloco})
    check_run(config)
    trainer = BaselineTrainer(config, torch.device("cpu"))
    (stage,) = trainer.model.stages.values()
    images = Batch({"x": torch.rand(4, 1, 8, 8)}, {"y": torch.arange(4)}, 4)
    seen = []
    for _ in range(3):
        trainer.step([images])
        seen.append(trainer.progress.distillation)
        if len(seen) == 2:
            before = {n: p.detach().clone() for n, p in stage.named_parameters() if "quant" not in n}
    assert [value != 0 for value in seen] == [False, False, True], seen
    teacher = teacher_of(stage)
    assert teacher is not None
    assert all(torch.equal(teacher.state[name], tensor) for name, tensor in before.items())


def test_a_group_agrees_on_the_kind_and_not_on_the_place() -> None:
    def said(config: Config, what: Any = agreement) -> object:
        return what(config, "front").get("quant.teacher")

    assert said(run("a/b")) == said(run("c")) == "a float model"
    assert said(run("self")) == "self"
    assert said(run()) is said(run("a", enabled=False)) is None
    assert said(run("a"), structure) == "a float model"
    assert structure(run("a", share=0.2), "front") == structure(run("a"), "front")
    assert agreement(run("a", share=0.2), "front") != agreement(run("a"), "front")


def names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_buffers()}


def test_without_a_teacher_a_stage_is_as_it_was() -> None:
    assert names(build_served(run(), "front")) == names(build_module(run(), "front"))
