"""What lies in a checkpoint folder, in words: for messages that must name it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distqat.checkpoint.round_index import RoundFolder, list_rounds

MODEL = "model.safetensors"
PREVIOUS = "previous"
_NAMES = 5


def inventory(folder: Path) -> str:
    """`rounds 6 to 8 of run 'mlp' (mlp.front, mlp.back) and model.safetensors`, or what else is there."""
    where = folder.absolute()
    if not folder.exists():
        return f"there is no {where}"
    if not folder.is_dir():
        return f"{where} is a file"
    found = of_rounds(list_rounds(folder)) + [MODEL] * (folder / MODEL).is_file()
    if found:
        return f"{where} holds {' and '.join(found)}"
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not others:
        return f"{where} is empty"
    more = f" and {len(others) - _NAMES} more" if len(others) > _NAMES else ""
    return f"{where} holds {', '.join(others[:_NAMES])}{more}"


def of_rounds(rounds: Sequence[RoundFolder]) -> list[str]:
    """One phrase per run and model, in the order of their rounds."""
    groups: dict[tuple[str, tuple[str, ...]], list[RoundFolder]] = {}
    for entry in rounds:
        runs = " and ".join(sorted({repr(manifest.run) for manifest in entry.manifests.values()}))
        groups.setdefault((runs, entry.wanted), []).append(entry)
    return [_phrase(runs, stages, entries) for (runs, stages), entries in groups.items()]


def earlier_runs(folder: Path) -> str:
    """A hint at runs that are kept beside; "" where there are none."""
    kept = folder / PREVIOUS
    names = sorted(path.name for path in kept.iterdir()) if kept.is_dir() else []
    return f"; earlier runs are in {kept}/: {', '.join(names[-3:])}" if names else ""


def _phrase(runs: str, stages: Sequence[str], entries: Sequence[RoundFolder]) -> str:
    first, last = min(entry.round for entry in entries), max(entry.round for entry in entries)
    span = f"round {last}" if first == last else f"rounds {first} to {last}"
    if not runs:
        return f"{span} of a run that cannot be read"
    found = {stage: m.agreement.get("model.model_name") for e in entries for stage, m in e.manifests.items()}
    return f"{span} of run {runs} ({', '.join(str(found.get(stage) or stage) for stage in stages)})"
