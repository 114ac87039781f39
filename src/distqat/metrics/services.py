"""Metrics services. They block and raise as they like: `Background` stands before them."""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distqat.metrics.record_values import numbers

log = logging.getLogger(__name__)

INIT_TIMEOUT_S = 30
DEFAULT_URL = "https://api.wandb.ai"


class WandbRun:
    """A Weights & Biases run per role, grouped by experiment. Only numbers are sent, no configuration."""

    def __init__(self, project: str, role: str, log_dir: Path) -> None:
        """Goes offline without a key or without network; the files can be synced later (`wandb sync`)."""
        import wandb

        log_dir.mkdir(parents=True, exist_ok=True)
        arguments: dict[str, Any] = {
            "project": project,
            "name": f"{log_dir.name}/{role}",
            "group": log_dir.name,
            "job_type": role.partition("_")[0],
            "dir": str(log_dir),
            "settings": wandb.Settings(init_timeout=INIT_TIMEOUT_S, console="off", silent=True),
        }
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
        if mode == "offline":
            log.info("W&B runs offline (no key, or WANDB_MODE); its files are in %s/wandb", log_dir)
        try:
            self._run = wandb.init(mode=mode, **arguments)
        except (wandb.errors.Error, OSError) as error:
            if mode != "online":
                raise
            log.warning("W&B cannot be reached (%s); it runs offline", type(error).__name__)
            self._run = wandb.init(mode="offline", **arguments)

    def write(self, record: Mapping[str, Any]) -> None:
        """Log the numbers of a record under `{event}/{name}`."""
        self._run.log(_named(record))

    def close(self) -> None:
        """Finish the run, so that what was logged is uploaded."""
        self._run.finish()


class TensorBoard:
    """Event files for TensorBoard; the record's `step` (or `round`) is the x axis."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def write(self, record: Mapping[str, Any]) -> None:
        """One scalar per number of a record, at its `step` or `round`."""
        step = record.get("step", record.get("round"))
        for name, value in _named(record).items():
            self._writer.add_scalar(name, value, step if isinstance(step, int) else None)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


def _has_key() -> bool:
    """Whether wandb would find a key: in the environment, or where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or DEFAULT_URL).hostname or ""
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _named(record: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by name, grouped under the record's event."""
    event = record.get("event")
    prefix = f"{event}/" if isinstance(event, str) else ""
    return dict(numbers(record, prefix))
