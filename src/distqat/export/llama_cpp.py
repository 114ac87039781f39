"""Run a GGUF file in llama.cpp itself, where it is installed: by node-llama-cpp, which brings it prebuilt.

`npm install node-llama-cpp` in a folder, and the folder's path in the variable DISTQAT_LLAMA_CPP.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distqat.errors import ExportError

VARIABLE = "DISTQAT_LLAMA_CPP"
_DRIVER = Path(__file__).with_name("llama_cpp.mjs")
_PACKAGE = Path("node_modules") / "node-llama-cpp"
_LINES_OF_LOG = 3


@dataclass(frozen=True)
class LlamaCppRun:
    """What llama.cpp found."""

    release: str
    top_NT: Tensor
    """int64 [sequences, tokens]: the likeliest next token at each place."""
    tokens: list[list[int]]
    """The texts, as its tokenizer has them."""


def installed() -> Path | None:
    """The folder that node-llama-cpp is in; None where the variable is not set. Raises ExportError."""
    told = os.environ.get(VARIABLE)
    if not told:
        return None
    folder = Path(told).expanduser()
    if not (folder / _PACKAGE).is_dir():
        raise ExportError(
            f"{VARIABLE} is {told!r}, and there is no {_PACKAGE} in it; run npm install node-llama-cpp there"
        )
    return folder


def run(folder: Path, model: Path, ids_NT: Tensor, texts: Sequence[str]) -> LlamaCppRun:
    """Evaluate sequences of one length, and tokenize texts, on the CPU. Raises ExportError."""
    asked = {"model": str(model.resolve()), "sequences": ids_NT.tolist(), "texts": list(texts)}
    try:
        done = subprocess.run(
            ["node", str(_DRIVER)], input=json.dumps(asked), cwd=folder, capture_output=True, text=True
        )
    except OSError as error:
        raise ExportError(f"node, which runs llama.cpp, cannot be started: {error.strerror}") from error
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = " ".join(done.stderr.split("\n")[-_LINES_OF_LOG - 1 :]).strip()
        raise ExportError(f"llama.cpp cannot run {model.name}: {said or f'exit code {done.returncode}'}")
    found = json.loads(lines[-1])
    return LlamaCppRun(found["release"], torch.tensor(found["top"], dtype=torch.int64), found["tokens"])
