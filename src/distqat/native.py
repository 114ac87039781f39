"""C source, compiled once per process and loaded: for loops that would be many passes over memory."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from distqat.errors import DistqatError

FLAGS = (
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
)
"""As fast as this processor allows, and rounded as written: no fused multiply-add, no reordering."""

COMPILE_S = 60.0


class NoCompiler(DistqatError):
    """There is no C compiler, or it failed."""


def compiler() -> str | None:
    """The C or C++ compiler of this machine: `CC`, else the first of the usual names."""
    wanted = os.environ.get("CC")
    return next(
        (path for name in filter(None, (wanted, "cc", "gcc", "clang")) if (path := shutil.which(name))), None
    )


@cache
def load(source: str) -> ctypes.CDLL:
    """The functions of `source`. Raises NoCompiler, which says what to do."""
    program = compiler()
    if program is None:
        raise NoCompiler(
            "quant.compile needs a C compiler (cc, gcc, clang or the variable CC); install one, or set "
            "it to false"
        )
    with tempfile.TemporaryDirectory(prefix="distqat-native-") as folder:
        written, library = Path(folder, "kernels.c"), Path(folder, "kernels.so")
        written.write_text(source, encoding="utf-8")
        command = [program, *FLAGS, "-o", str(library), str(written), "-lm"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=COMPILE_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoCompiler(f"quant.compile: {program} did not run: {error}; set it to false") from error
        if done.returncode != 0:
            raise NoCompiler(
                f"quant.compile: {program} failed: {done.stderr.strip()[-400:]}; set it to false"
            )
        return ctypes.CDLL(str(library))  # stays mapped when the file is gone
