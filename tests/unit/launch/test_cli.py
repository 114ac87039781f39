from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from distqat.launch import cli


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in cli.COMMANDS)


def test_without_a_command_it_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    said = capsys.readouterr()
    assert "usage" in said.out
    assert said.err == "distqat: name a command\n"


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sever"]) == 2
    assert "unknown command 'sever'; did you mean 'server'?" in capsys.readouterr().err


def test_flags_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def load(where: str) -> object:
        seen.append(where)
        return lambda argv: seen.append(argv) or 7

    monkeypatch.setattr(cli, "load", load)
    assert cli.main(["baseline", "--seed", "3"]) == 7
    assert seen == ["distqat.launch.run_local:main", ["--baseline", "--seed", "3"]]


@pytest.mark.parametrize("name", ["trainer-client", "servers", "config"])
def test_commands_exist(name: str) -> None:
    module, _, function = cli.COMMANDS[name][0].partition(":")
    assert importlib.util.find_spec(module) is not None
    assert callable(getattr(importlib.import_module(module), function))


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = "('torch', 'pydantic', 'psutil', 'asyncio')"
    code = f"import sys, distqat.launch.cli; sys.exit(any(name in sys.modules for name in {heavy}))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
