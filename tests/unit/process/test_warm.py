"""The fork server imports what roles need: what is broken is told with its line, what is missing is not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from distqat.errors import ConfigError
from distqat.process import ForkServerClient, RoleCommand
from distqat.process.forkserver import warm


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's file, imported by something that passes for a role of the package."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "distqat_role_of_a_test.py").write_text("import model_of_a_test\n")
    return tmp_path / "model_of_a_test.py"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "import torch\n\n@register_expert_class('a.b', None)\nclass A: ...\n",
            "NameError: name 'register_expert_class' is not defined; the file lacks the line `from "
            "distqat.models.registry import register_expert_class` (PLACE:3)",
        ),
        ("x = 1\ndef f(:\n", "SyntaxError: invalid syntax (PLACE:2)"),
        (
            "import no_such_package_here\n",
            "ModuleNotFoundError: No module named 'no_such_package_here' (PLACE:1)",
        ),
        ("raise SystemExit(3)\n", "SystemExit: 3 (PLACE:1)"),
        ("import torch\ntorch.zeros(2) @ torch.zeros(3)\n", "(PLACE:2)"),
    ],
)
def test_what_cannot_be_imported_is_told_with_its_line(module: Path, text: str, said: str) -> None:
    module.write_text(text)
    with pytest.raises(ConfigError) as caught:
        warm(["distqat_role_of_a_test"])
    assert str(caught.value).startswith("distqat_role_of_a_test cannot be imported: ")
    assert str(caught.value).endswith(said.replace("PLACE", str(module)))


def test_a_package_that_is_not_there_is_left_to_the_role() -> None:
    warm(["no_such_package_here", "json"])


@pytest.fixture
def broken(module: Path) -> None:
    module.write_text("import torch\nx = nn.Linear\n")


@pytest.mark.usefixtures("broken")
async def test_whoever_asks_for_a_role_is_told() -> None:
    fork_server = ForkServerClient.start(["distqat_role_of_a_test"])
    try:
        with pytest.raises(ConfigError, match=r"the line `from torch import nn` .*model_of_a_test.py:2"):
            await asyncio.wait_for(fork_server.spawn(RoleCommand("server 0", "any:main", (), None)), 30)
        with pytest.raises(ConfigError, match="cannot be imported"):
            await asyncio.wait_for(fork_server.warm(), 10)
        with pytest.raises(ConfigError, match="cannot be imported"):
            await asyncio.wait_for(fork_server.spawn(RoleCommand("server 1", "any:main", (), None)), 10)
    finally:
        await asyncio.wait_for(fork_server.close(), 10)
