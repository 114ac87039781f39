"""One rule for all paths of a configuration, and messages that name where one was looked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from distqat import config_paths
from distqat.errors import ConfigError


@pytest.fixture(autouse=True)
def _two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The working directory, and beside it the folder of a configuration file."""
    for name in ("here", "configs"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    config_paths.count_also_from([Path("../configs")])
    yield
    config_paths.count_also_from([])


def test_the_working_directory_comes_first(tmp_path: Path) -> None:
    (tmp_path / "configs" / "data").mkdir()
    assert config_paths.find("./data") == tmp_path / "configs" / "data"
    (tmp_path / "here" / "data").mkdir()
    assert config_paths.find("./data") == tmp_path / "here" / "data"
    assert config_paths.find(str(tmp_path)) == tmp_path


def test_what_is_nowhere_is_in_the_working_directory(tmp_path: Path) -> None:
    assert config_paths.find("data") == tmp_path / "here" / "data"
    said = config_paths.looked_at("data")
    assert said.startswith(f"looked for {tmp_path}/here/data and {tmp_path}/configs/data: paths count from")
    assert config_paths.looked_at("/nowhere/data") == "looked for /nowhere/data"


def test_two_of_a_name_are_refused_unless_they_are_one(tmp_path: Path) -> None:
    (tmp_path / "here" / "data").mkdir()
    config_paths.refuse_twice("./data")
    (tmp_path / "configs" / "data").symlink_to(tmp_path / "here" / "data")
    config_paths.refuse_twice("./data")
    (tmp_path / "configs" / "data").unlink()
    (tmp_path / "configs" / "data").mkdir()
    with pytest.raises(
        ConfigError, match=r"'\./data' is there twice, as .*/here/data and as .*/configs/data"
    ):
        config_paths.refuse_twice("./data")


@pytest.mark.parametrize("name", [".", "./", "..", "../.."])
def test_where_one_stands_is_the_working_directory(name: str, tmp_path: Path) -> None:
    config_paths.refuse_twice(name)
    assert config_paths.find(name) == tmp_path / "here" / name


def test_a_folder_that_is_both_is_looked_at_once(tmp_path: Path) -> None:
    config_paths.count_also_from([Path()])
    assert config_paths.folders() == (tmp_path / "here",)
