"""What a checkpoint says of its run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distqat.checkpoint import write_model
from distqat.checkpoint.run_card import CARD, METADATA, RunCard, read_card, write_card
from distqat.errors import CheckpointError

OF_RUN = RunCard(
    run="cats",
    generation=100,
    config={"seed": 0, "plugins": ["/home/me/model.py"]},
    classes=["cat", "døg"],
    folders=["/home/me"],
)


def model(path: Path, card: RunCard) -> Path:
    write_model(path, {"w": torch.ones(2)}, {METADATA: card.to_json().decode()})
    return path


def test_a_folder_gives_it_back(tmp_path: Path) -> None:
    write_card(tmp_path, OF_RUN.model_copy(update={"run": "older"}))
    write_card(tmp_path, OF_RUN)
    found = read_card(tmp_path)
    assert found is not None
    assert found.written_at
    assert found.model_copy(update={"written_at": ""}) == OF_RUN
    assert [path.name for path in tmp_path.iterdir()] == [CARD]


def test_a_model_file_tells_nothing_of_the_host(tmp_path: Path) -> None:
    found = read_card(model(tmp_path / "model.safetensors", OF_RUN.to_share()))
    assert found is not None
    assert found.classes == ["cat", "døg"]
    assert found.config["plugins"] == ["model.py"]
    assert (found.generation, found.written_at) == (0, "")
    assert b"/home/me" not in (tmp_path / "model.safetensors").read_bytes()


def test_beside_its_own_card_a_model_file_knows_the_folders(tmp_path: Path) -> None:
    path = model(tmp_path / "model.safetensors", OF_RUN.to_share())
    write_card(tmp_path, OF_RUN)
    found = read_card(path)
    assert found is not None
    assert found.folders == ["/home/me"]
    write_card(tmp_path, OF_RUN.model_copy(update={"run": "another"}))
    found = read_card(path)
    assert found is not None
    assert (found.run, found.folders) == ("cats", [])


def test_older_ones_have_none(tmp_path: Path) -> None:
    assert read_card(tmp_path) is None
    write_model(tmp_path / "model.safetensors", {"w": torch.ones(2)}, {})
    assert read_card(tmp_path / "model.safetensors") is None


def test_a_changed_one_is_not_believed(tmp_path: Path) -> None:
    write_card(tmp_path, OF_RUN)
    fields = json.loads((tmp_path / CARD).read_text())
    (tmp_path / CARD).write_text(json.dumps({**fields, "classes": ["dog", "cat"]}))
    with pytest.raises(CheckpointError, match="bytes changed after writing"):
        read_card(tmp_path)
    (tmp_path / "none.safetensors").write_text("nothing")
    with pytest.raises(CheckpointError, match="is not a model file"):
        read_card(tmp_path / "none.safetensors")
