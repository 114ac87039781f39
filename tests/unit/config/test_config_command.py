"""`distqat config`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distqat.config import load_config
from distqat.config.config_command import config_command


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert config_command(["--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["seed"]


def test_resolved_values_load_to_the_same_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert config_command(["configs/mlp.yaml", "--diloco-inner-steps", "3", "--disable-quant"]) == 0
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(capsys.readouterr().out)
    expected = load_config("configs/mlp.yaml", {"diloco.inner_steps": 3, "quant.enabled": False})
    assert load_config(resolved) == expected


def test_a_bad_file_ends_with_status_2_and_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yaml").write_text("sed: 1\n")
    assert config_command([str(tmp_path / "bad.yaml")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"{tmp_path}/bad.yaml:1: sed: unknown key; did you mean 'seed'?\n"
