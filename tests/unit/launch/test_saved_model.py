"""A trained model is held to the configuration that it is read with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from distqat.checkpoint import CheckpointStore, ShardState, write_model
from distqat.checkpoint.assembled_model import TOLD, read_told
from distqat.config import Config, agreement, load_config, quantization
from distqat.diloco.tensor_digest import state_digest
from distqat.distributed.assembly.stage_factory import build_module
from distqat.distributed.coordination.model_saving import save_model
from distqat.errors import CheckpointError, ConfigError
from distqat.launch import cli
from distqat.launch.saved_model import SavedModel


def config(**changes: Any) -> Config:
    return load_config("configs/mlp.yaml", {key.replace("__", "."): value for key, value in changes.items()})


def saved(told: Mapping[str, Any]) -> SavedModel:
    return SavedModel({}, {"model": "model.safetensors"}, told)


def told(**changes: Any) -> dict[str, Any]:
    return quantization(agreement(config(**changes), "front"))


def test_its_own_configuration_fits() -> None:
    saved(told()).hold_to(config())
    saved(told()).hold_to(config(seed=3, device="cpu", quant__warmup={"calibrate_batches": 2}))
    saved({}).hold_to(config())  # a file that does not tell
    saved({**told(), "quant.future": 1}).hold_to(config())


def test_float_weights_of_a_quantized_run_may_be_looked_at() -> None:
    saved(told()).hold_to(config(quant__enabled=False))
    saved(told(quant__enabled=False)).hold_to(config(quant__enabled=False))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quant__weight__bits": 4}, "quant.weight.bits 4, not 8"),
        ({"quant__activation__method": "minmax"}, "quant.activation.method 'minmax', not 'lsq'"),
        ({"quant__skip": ["*fc*"]}, r"quant.skip \['\*fc\*'\], not"),
        ({"quant__enabled": False}, "in float, so it has no integers"),
    ],
)
def test_another_meaning_of_codes_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"model.safetensors was trained .*{said}"):
        saved(told(**changes)).hold_to(config())


def test_a_finished_run_tells(tmp_path: Path) -> None:
    ended = config(param_mirror__checkpoint_dir=str(tmp_path), quant__weight__bits=4)
    path = save_model(ended, {stage: build_module(ended, stage) for stage in ended.stages})
    found = SavedModel.read(ended, path, None)
    assert found.quantization == told(quant__weight__bits=4)
    found.hold_to(ended)


def test_a_folder_tells_and_so_does_its_assembled_file(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run", "run", stages=("front", "back"))
    for stage in ("front", "back"):
        shared = {f"anchor/{stage}.w": torch.ones(2), "outer/step": torch.tensor(1)}
        state = ShardState(1, 1, 10, state_digest(shared), shared, agreement(config(), stage), "agreed")
        store.write(stage, state)
    found = SavedModel.read(config(), tmp_path / "run", None)
    assert found.quantization == told()
    assert found.source == {"checkpoint": str(tmp_path / "run"), "round": 1}
    out = tmp_path / "model.safetensors"
    assert cli.main(["checkpoint", "assemble", str(tmp_path / "run"), "--out", str(out)]) == 0
    assert read_told(out) == told()


def test_a_file_of_another_program_tells_nothing(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "other.safetensors")
    assert read_told(tmp_path / "other.safetensors") == {}
    (tmp_path / "none.safetensors").write_text("nothing")
    with pytest.raises(CheckpointError, match="is not a model file"):
        read_told(tmp_path / "none.safetensors")


@pytest.mark.parametrize("command", ["export", "evaluate"])
def test_commands_refuse_what_does_not_fit(command: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "model.safetensors"
    write_model(path, {"w": torch.ones(1)}, {TOLD: json.dumps(told(quant__weight__bits=4))})
    words = [command, str(path), "--config-path", "configs/mlp.yaml"]
    words += ["--out", str(tmp_path / "out")] if command == "export" else []
    assert cli.main(words) == 2
    assert "quant.weight.bits 4, not 8; give the run's own configuration" in capsys.readouterr().err
