"""What is told of a run that is over: `summary.json` in the log folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distqat.atomic_files import write_whole
from distqat.errors import RoleError
from distqat.metrics.record_values import plain

SUMMARY = "summary.json"


@dataclass
class RunSummary:
    """What the user is told when the run is over. Figures that nobody has are None."""

    mode: str  # "swarm" or "baseline"
    metric: str = "accuracy"
    value: float | None = None  # on held-out data; in the file also under the metric's own name
    heldout_samples: int = 0
    heldout_loss: float | None = None
    evaluation_error: str = ""  # why the model could not be judged; "" when it was
    loss_first: float | None = None
    loss_last: float | None = None
    samples: int = 0
    samples_per_s: float = 0.0
    seconds: float = 0.0
    rounds: int = 0
    model: str = ""
    logs: str = ""
    checkpoints: str = ""
    bytes_sent: dict[str, int] = field(default_factory=dict)  # by `front.0.0.0`, `trainer 0`, `client`
    digests: dict[str, str] = field(default_factory=dict)
    discarded_rounds: int = 0
    data: dict[str, Any] = field(default_factory=dict)  # what was left out: data.rows.account_of

    @property
    def failure(self) -> str:
        """One sentence when the model is there, but could not be judged; "" when it was judged."""
        if not self.evaluation_error:
            return ""
        return (
            f"the model is saved as {self.model}, but it could not be judged: {self.evaluation_error}; "
            f"when that is put right: distqat evaluate {self.model}"
        )

    def line(self) -> str:
        """One sentence."""
        if self.value is None:
            return self.failure
        judged = f"{self.metric} {self.value:.4f} on {self.heldout_samples} held-out samples"
        return f"{judged}, model {self.model}"

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it, which has no NaN: that is null."""
        fields: dict[str, Any] = plain(asdict(self))
        named = {} if self.metric in fields else {self.metric: fields["value"]}
        return {**fields, **named}

    def write(self, folder: Path) -> None:
        """Write `summary.json` in one piece. Raises OSError."""
        write_whole(folder / SUMMARY, json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> RunSummary:
        """The one that was written to a folder. RoleError: it is not there, or no summary."""
        path = folder / SUMMARY
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except OSError as error:
            raise RoleError(f"no summary at {path}: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise RoleError(f"{path} cannot be read: {where and where + ': '}{first['msg']}") from error
