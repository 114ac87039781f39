"""The trained model finds a place, whatever the disk of its folder says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from distqat.checkpoint.assembled_model import read_model
from distqat.checkpoint.run_card import read_card
from distqat.config import Config, load_config
from distqat.distributed.assembly.run_notes import CLASSES
from distqat.distributed.assembly.stage_factory import build_module
from distqat.distributed.coordination import model_saving
from distqat.distributed.coordination.model_saving import (
    NoPlace,
    save_model,
    save_model_somewhere,
    save_shown,
)
from distqat.errors import CheckpointError, TaskError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Of a run whose four places lie in folders of their own."""
    for name in ("work", "home", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(model_saving.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    changes = {"param_mirror.checkpoint_dir": str(tmp_path / "ck"), "log_dir": str(tmp_path / "logs")}
    return load_config("configs/mlp_full.yaml", changes)


@pytest.fixture
def modules(config: Config) -> dict[str, nn.Module]:
    return {stage: build_module(config, stage) for stage in config.stages}


@pytest.fixture
def notices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(model_saving, "notice", said.append)
    return said


def block(*folders: Path) -> None:
    for folder in folders:
        folder.write_text("a file where a folder should be")


def test_the_checkpoint_folder_comes_first(config: Config, modules: Any, notices: list[str]) -> None:
    path = save_model(config, modules)
    assert path == config.checkpoint_dir / "model.safetensors"
    assert read_model(path).keys() == modules["full"].state_dict().keys()
    card = read_card(path)
    assert card is not None
    assert (card.run, card.classes) == (config.experiment_prefix, [])
    assert notices == []
    before = path.read_bytes()
    assert save_model(config, modules) == path  # of the same run: it has gone on
    assert path.read_bytes() == before  # the same weights are the same bytes, whenever they are written


def test_names_of_classes_travel_in_the_file(config: Config, modules: Any) -> None:
    Path(config.log_dir).mkdir()
    (Path(config.log_dir) / CLASSES).write_text(json.dumps(["cat", "dog"]))
    card = read_card(save_model(config, modules))
    assert card is not None
    assert card.classes == ["cat", "dog"]


def test_the_next_place_is_named(config: Config, modules: Any, notices: list[str], tmp_path: Path) -> None:
    block(tmp_path / "ck")
    name = f"{config.experiment_prefix}.model.safetensors"
    assert save_model(config, modules) == tmp_path / "logs" / name
    assert notices == [
        f"{tmp_path}/ck/model.safetensors could not be written: File exists: the model is saved as "
        f"{tmp_path}/logs/{name}"
    ]
    assert save_model(config, modules) == tmp_path / "logs" / f"2.{name}"  # nothing is replaced there
    for path in (tmp_path / "logs").iterdir():
        path.unlink()
    (tmp_path / "logs").rmdir()
    block(tmp_path / "logs")
    assert save_model(config, modules).absolute() == tmp_path / "work" / name


async def test_it_waits_for_a_place_and_loses_nothing(
    config: Config, modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("work", "home", "tmp"):
        (tmp_path / name).rename(tmp_path / f"{name}.gone")
    block(*(tmp_path / name for name in ("ck", "logs", "home", "tmp")))
    block(tmp_path / "work")
    monkeypatch.setattr(model_saving, "_free", lambda folder, name: tmp_path / "work" / folder / name)
    with pytest.raises(NoPlace, match=r"/ck/model.*; .*/logs/.*; .*; .*/home/.*; .*/tmp/"):
        save_model(config, modules)
    monkeypatch.setattr(model_saving, "AGAIN_S", 0.01)
    writing = asyncio.ensure_future(save_model_somewhere(config, modules))
    await asyncio.sleep(0.05)
    assert not writing.done()
    (tmp_path / "ck").unlink()
    assert await asyncio.wait_for(writing, 20) == config.checkpoint_dir / "model.safetensors"


def test_what_no_file_can_hold_is_not_tried_elsewhere(
    config: Config, modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise CheckpointError("tensor 'w' of complex64 cannot be kept in a checkpoint")

    monkeypatch.setattr(model_saving, "write_model", refuse)
    with pytest.raises(CheckpointError, match="complex64") as raised:
        save_model(config, modules)
    assert not isinstance(raised.value, NoPlace)


def test_the_model_of_another_run_is_moved_aside(config: Config, modules: Any, notices: list[str]) -> None:
    other = config.model_copy(update={"experiment_prefix": "other"})
    path = save_model(other, modules)
    assert save_model(config, modules) == path
    assert len(list(path.parent.glob("previous/*/model.safetensors"))) == 1
    assert "the model of run 'other'" in notices[0]


def test_what_is_shown_never_ends_a_run(
    config: Config, modules: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise TaskError("no picture")

    monkeypatch.setattr(model_saving, "show", refuse)
    save_shown(config, modules)
    assert "no picture" in caplog.text
