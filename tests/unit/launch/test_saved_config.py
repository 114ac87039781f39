"""A trained model is read with its own configuration, and another one is told of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import nn

from distqat import config_paths
from distqat.checkpoint import CheckpointStore, ShardState
from distqat.config import Config, load_config, structure, structure_digest
from distqat.diloco.tensor_digest import state_digest
from distqat.distributed.assembly.evaluation import build_all
from distqat.distributed.assembly.run_notes import note_classes, note_run
from distqat.distributed.coordination.model_saving import save_model
from distqat.distributed.serving.committed_state import initial
from distqat.launch import cli


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    config_paths.count_also_from([])


def narrow(**changes: Any) -> Config:
    """An MLP of an unusual width, and a file that says so where no command looks."""
    Path("elsewhere").mkdir(exist_ok=True)
    pipeline = [{"model_name": f"mlp.{name}", "hidden": 24, "num_classes": 10} for name in ("front", "back")]
    given = {"quant": {"enabled": False}, "data": {"num_channels": 1, "img_size": 8, **changes}}
    text = json.dumps({"experiment_prefix": "narrow", "model_pipeline": {"pipeline": pipeline}, **given})
    Path("elsewhere/narrow.yaml").write_text(text)
    return load_config("elsewhere/narrow.yaml")


def rounds(config: Config) -> Path:
    """A checkpoint folder of untrained weights, as servers and the client write it."""
    store = CheckpointStore(config.checkpoint_dir, config.experiment_prefix, stages=config.stages)
    for stage, module in build_all(config).items():
        shared = initial(module).tensors()
        told, digest = structure(config, stage), structure_digest(config, stage)
        store.write(stage, ShardState(1000, 1, 10, state_digest(shared), shared, told, digest))
    return config.checkpoint_dir


def evaluate(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["evaluate", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_width_needs_no_flag(capsys: pytest.CaptureFixture[str]) -> None:
    config = narrow()
    folder = rounds(config)
    code, _, error = evaluate(capsys, str(folder), "--disable-quant")  # of an older release: there is no card
    assert code == 1
    assert "give the run's own configuration with --config-path" in error
    note_run(config, 1000, goes_on=False)
    code, said, error = evaluate(capsys, str(folder))
    assert (code, error) == (0, "")
    assert said.startswith("accuracy 0.")
    assert "on 359 held-out samples" in said
    path = save_model(config, build_all(config))
    assert evaluate(capsys, str(path))[0] == 0
    assert cli.main(["checkpoint", "assemble", str(folder), "--out", "copied/model.safetensors"]) == 0
    assert evaluate(capsys, "copied/model.safetensors")[0] == 0


def test_another_configuration_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    config = narrow()
    note_run(config, 1000, goes_on=False)
    folder = str(rounds(config))
    code, _, error = evaluate(capsys, folder, "--config-path", "elsewhere/narrow.yaml")
    assert (code, error) == (0, "")
    code, _, error = evaluate(capsys, folder, "--config-path", "configs/mlp.yaml", "--disable-quant")
    assert code == 1
    assert "other than in training: model_pipeline.pipeline.0.hidden None, not 24" in error
    assert "(without --config-path the configuration of the run is taken)" in error


def test_a_folder_of_a_baseline_holds_a_model_only(capsys: pytest.CaptureFixture[str]) -> None:
    config = narrow()
    path = save_model(config, build_all(config))
    code, said, _ = evaluate(capsys, str(path.parent), "--json")
    assert code == 0
    assert json.loads(said)["model"] == str(path)


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_what_is_not_there_is_named_with_where_it_was_looked_for(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds(narrow())
    words = [command, "checkpoints/nope", *(["--out", "out"] if command == "export" else [])]
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"distqat {command}: there is no checkpoint folder and no model file checkpoints/nope" in error
    assert f"looked for {tmp_path}/checkpoints/nope; {tmp_path}/checkpoints/ holds narrow" in error


def test_a_folder_without_checkpoints_says_what_it_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    code, _, error = evaluate(capsys, "photos")
    assert code == 1
    assert f"{tmp_path}/photos holds cat.png" in error


def test_no_exception_is_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = narrow()
    path = str(save_model(config, build_all(config)))

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            raise ZeroDivisionError("of a plugin")

    monkeypatch.setattr("distqat.distributed.assembly.evaluation.build_module", lambda *_: Broken())
    code, _, error = evaluate(capsys, path)
    assert code == 1
    assert error.startswith("distqat evaluate: ZeroDivisionError: of a plugin (")
    assert error.count("\n") == 1


def pictures(*names: str) -> None:
    for shade, name in enumerate(names):
        for split in ("train", "test"):
            Path("photos", split, name).mkdir(parents=True, exist_ok=True)
            for number in range(4):
                Image.new("L", (8, 8), 40 * shade + number).save(f"photos/{split}/{name}/{number}.png")


def test_classes_that_changed_meanwhile_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from distqat.data.open_source import open_source

    pictures("cat", "dog")
    config = narrow(dataset_name="./photos")
    note_classes(config, open_source(config.data, seed=0))
    note_run(config, 1000, goes_on=False)
    folder = str(rounds(config))
    assert evaluate(capsys, folder)[0] == 0
    pictures("bee", "cat", "dog")
    code, _, error = evaluate(capsys, folder)
    assert code == 2
    assert "was trained on the classes 0 cat, 1 dog, and data.dataset_name now has 0 bee" in error


def test_data_are_found_from_where_the_run_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures("cat", "dog")
    config = narrow(dataset_name="./photos")
    note_run(config, 1000, goes_on=False)
    folder = rounds(config).absolute()
    monkeypatch.chdir("/")
    assert evaluate(capsys, str(folder))[0] == 0
