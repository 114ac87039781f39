"""What every benchmark writes beside its figures: where and when they were taken."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUSY_LOAD = 0.5  # load average of the last minute above which figures are marked


def facts() -> dict[str, Any]:
    """The machine, the versions, the date, and whether something else was running."""
    import torch

    load = os.getloadavg()[0]
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_at_start": load,
        "under_load": load > BUSY_LOAD,
    }


def describe(about: Mapping[str, Any]) -> str:
    """One line for the terminal."""
    line = f"{about['cpu']}, {about['cores']} cores, torch {about['torch']}, {about['date']}"
    if about["under_load"]:
        line += f"; TAKEN UNDER LOAD (load average {about['load_at_start']:.1f} at the start)"
    return line


def output(text: str) -> Path:
    """A path that `write_json` will write: an argparse type, since it should not fail after an hour."""
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot make the folder {path.parent}: {error.strerror}") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written; give the name of a file")
    return path


def write_json(path: Path, about: Mapping[str, Any], results: Any) -> None:
    """Facts and results, in one piece."""
    fresh = path.with_name(f".{path.name}.tmp")
    body = {"facts": {**about, "load_at_end": os.getloadavg()[0]}, "results": results}
    fresh.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    fresh.replace(path)


def _commit() -> str | None:
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
