"""Packages of extras: what a user reads when one is not installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from distqat.errors import ConfigError, MissingExtra
from distqat.extras import require


def test_a_package_that_is_there_is_imported() -> None:
    assert require("json", extra="speech") is json
    assert require("json.decoder", extra="speech").__name__ == "json.decoder"


@pytest.mark.parametrize("name", ["no_such_package_here", "no_such_package_here.part"])
def test_a_missing_one_is_named_with_the_command_that_installs_it(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"recorded speech needs the package 'no_such_package_here'"
    ) as told:
        require(name, extra="speech", why="recorded speech")
    assert isinstance(told.value, MissingExtra)
    assert "pip install 'distqat[speech]'" in str(told.value)


def test_a_package_that_misses_another_one_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_installed_package.py").write_text("import no_such_package_here\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_package_here"):
        require("half_installed_package", extra="speech")
    sys.modules.pop("half_installed_package", None)
