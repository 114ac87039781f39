"""docs/extending.md, followed literally in a copy of the sources."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.pages import ROOT, Block, blocks

PAGE = ROOT / "docs" / "extending.md"
CHECK = """
import torch
from distqat.config import load_config
from distqat.distributed.building import check_model
from distqat.distributed.model import SwarmBaselineModel

config = load_config("configs/mymodel.yaml")
check_model(config)
model = SwarmBaselineModel(load_config("configs/mymodel.yaml", {"quant.enabled": False}))
assert model(torch.zeros(4, 1, 8, 8)).shape == (4, 10)
print(sorted(dict(model.named_parameters())))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A working tree with the page's three texts where it says."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "configs"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "src" / "distqat" / "configs").symlink_to(tmp_path / "configs")
    shutil.copy(ROOT / "run_local.py", tmp_path)
    model, line = (block for block in blocks("python") if block.page == "docs/extending.md")
    (config,) = (block for block in blocks("yaml") if block.page == "docs/extending.md")
    (tmp_path / place_of(model)).write_text(model.text)
    (tmp_path / place_of(config)).write_text(config.text)
    with (tmp_path / place_of(line)).open("a") as file:
        file.write(line.text)
    return tmp_path


def place_of(block: Block) -> str:
    """The path in backticks that the text before the block named last."""
    before = PAGE.read_text(encoding="utf-8").splitlines()[: block.line - 1]
    paths = re.findall(r"`((?:src|configs)/[\w/.]+)`", "\n".join(before))
    return str(paths[-1])


def run(copy: Path, *words: str, timeout: float) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "PYTHONPATH": str(copy / "src"), "XDG_RUNTIME_DIR": str(copy / "run"),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *words],
        cwd=copy, env=environment, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def test_the_recipe_makes_a_model(copy: Path) -> None:
    done = run(copy, "-c", CHECK, timeout=50)
    assert done.returncode == 0, done.stderr
    assert "stages.head.conv.weight" in done.stdout
    assert "stages.tail.fc.bias" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_the_recipe_trains_in_a_swarm(copy: Path) -> None:
    flags = ("--monitor-port=0", "--client-port=0", "--server-base-port=0", "--replicas=1")
    done = run(copy, "run_local.py", "--config-path", "configs/mymodel.yaml", *flags, timeout=140)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (copy / "checkpoints" / "mymodel" / "model.safetensors").is_file()
    assert "accuracy, held out" in done.stdout
