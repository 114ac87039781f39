"""What is noted of a run beside its checkpoints, by its client and by hosts that have none."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from distqat.checkpoint.run_card import RunCard, read_card
from distqat.config import Config, load_config
from distqat.data.embedded import EmbeddedSource
from distqat.data.source import NoData
from distqat.distributed.assembly.run_notes import (
    CLASSES,
    card_of,
    check_classes,
    note_classes,
    note_run,
    note_run_of_server,
    noted_classes,
)
from distqat.errors import ConfigError


@pytest.fixture
def config(tmp_path: Path) -> Config:
    places = {"param_mirror.checkpoint_dir": str(tmp_path / "ck"), "log_dir": str(tmp_path / "logs")}
    return load_config("configs/mlp.yaml", {**places, "experiment_prefix": "cats"})


def named(*classes: str) -> EmbeddedSource:
    return EmbeddedSource("images", [], [], seed=0, classes=classes)


def card(config: Config) -> RunCard:
    found = read_card(config.checkpoint_dir)
    assert found is not None
    return found


def test_names_of_classes_go_from_the_data_to_the_checkpoints(config: Config) -> None:
    note_classes(config, named("cat", "dög"))
    note_run(config, 7, goes_on=False)
    assert noted_classes(config) == card(config).classes == ["cat", "dög"]
    assert (card(config).run, card(config).generation) == ("cats", 7)
    assert card(config).config["data"]["img_size"] == 8  # type: ignore[index,call-overload]
    note_classes(config, NoData())
    assert noted_classes(config) == []
    assert not (Path(config.log_dir) / CLASSES).exists()


def test_a_run_does_not_go_on_with_other_classes(config: Config) -> None:
    """A folder that was added shifts the numbers of those behind it."""
    note_classes(config, named("cat", "dog"))
    note_run(config, 7, goes_on=False)
    note_run(config, 8, goes_on=True)
    note_classes(config, named("bee", "cat", "dog"))
    with pytest.raises(
        ConfigError, match=r"trained on the classes 0 cat, 1 dog, .* now has 0 bee, 1 cat, 2 dog"
    ):
        note_run(config, 9, goes_on=True)
    assert card(config).generation == 8
    note_run(config, 9, goes_on=False)  # a new run
    assert card(config).classes == ["bee", "cat", "dog"]


def test_many_classes_make_no_long_sentence() -> None:
    check_classes([], ["a"], "it")
    with pytest.raises(ConfigError, match=r"7 c7, \.\.\. \(1000\), and data.dataset_name now has 0 a:"):
        check_classes([f"c{number}" for number in range(1000)], ["a"], "it")


def test_a_server_writes_one_only_where_there_is_none(config: Config) -> None:
    note_run_of_server(config, 7, 7)
    assert card(config).generation == 7
    note_classes(config, named("cat"))
    note_run(config, 8, goes_on=False)
    note_run_of_server(config, 9, 8)
    assert card(config).classes == ["cat"]
    note_run_of_server(config, 20, 20)  # what is there is of an earlier run
    assert card(config).generation == 20


def test_a_disk_that_refuses_is_a_warning(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    config.checkpoint_dir.write_text("a file in the way")
    with caplog.at_level(logging.WARNING):
        note_run(config, 7, goes_on=False)
    assert "distqat evaluate and export will need --config-path" in caplog.text
    config.checkpoint_dir.unlink()
    config.checkpoint_dir.mkdir()
    (config.checkpoint_dir / "run.json").write_text("{")
    note_run(config, 7, goes_on=True)
    assert card(config) == card_of(config, 7).model_copy(update={"written_at": card(config).written_at})
