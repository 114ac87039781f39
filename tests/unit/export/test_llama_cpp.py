"""llama.cpp beside the checker: where it is, what it is asked, and what it says when it fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from distqat.errors import ExportError
from distqat.export import llama_cpp

ANSWERS = """
import json, sys
asked = json.load(sys.stdin)
top = [[id + 1 for id in ids] for ids in asked["sequences"]]
print("something that the library prints")
print(json.dumps({"release": "b1", "top": top, "tokens": [[len(text)] for text in asked["texts"]]}))
"""
FAILS = "import sys; sys.exit('error: unknown model architecture')"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed node-llama-cpp, and a `node` in the path, whose text each test writes."""
    (tmp_path / "node_modules" / "node-llama-cpp").mkdir(parents=True)
    monkeypatch.setenv(llama_cpp.VARIABLE, str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def node(folder: Path, text: str) -> None:
    (folder / "node").write_text(f"#!{sys.executable}\n{text}")
    (folder / "node").chmod(0o755)


def test_it_is_found_by_its_variable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert llama_cpp.installed() == folder
    monkeypatch.delenv(llama_cpp.VARIABLE)
    assert llama_cpp.installed() is None
    monkeypatch.setenv(llama_cpp.VARIABLE, str(folder / "nothing"))
    with pytest.raises(ExportError, match="run npm install node-llama-cpp there"):
        llama_cpp.installed()


def test_its_answers_are_read(folder: Path) -> None:
    node(folder, ANSWERS)
    ran = llama_cpp.run(folder, folder / "model.gguf", torch.tensor([[1, 2], [3, 4]]), ["abc"])
    assert ran.top_NT.tolist() == [[2, 3], [4, 5]]
    assert (ran.release, ran.tokens) == ("b1", [[3]])


def test_its_last_words_are_passed_on(folder: Path) -> None:
    node(folder, FAILS)
    with pytest.raises(ExportError, match=r"cannot run model\.gguf: error: unknown model architecture"):
        llama_cpp.run(folder, folder / "model.gguf", torch.tensor([[1]]), [])
