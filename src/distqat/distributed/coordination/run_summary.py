"""What is told of a run that is over: `summary.json` in the log folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distqat.atomic_files import write_whole
from distqat.distributed.assembly.evaluation import EvaluationResult, NotJudged
from distqat.distributed.coordination.verdict import not_judged
from distqat.metrics.record_values import plain


@dataclass
class RunSummary:
    """What the user is told when the run is over. Figures that nobody has are None."""

    mode: str
    metric: str
    value: float | None
    """Of the metric, on held-out data; in the file also under the metric's own name."""
    heldout_samples: int
    heldout_loss: float | None
    evaluation_error: str
    """Why the model could not be judged; "" when it was."""
    loss_first: float | None
    loss_last: float | None
    samples: int
    samples_per_s: float
    seconds: float
    rounds: int
    model: str
    logs: str
    checkpoints: str
    bytes_sent: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    discarded_rounds: int = 0
    data: dict[str, Any] = field(default_factory=dict)
    """What the data set left out (`distqat.data.rows.account_of`)."""

    @staticmethod
    def of_judgement(judged: EvaluationResult | NotJudged, metric: str) -> dict[str, Any]:
        """The fields that an evaluation fills."""
        if isinstance(judged, NotJudged):
            none = {"value": None, "heldout_samples": 0, "heldout_loss": None}
            return {"metric": metric, **none, "evaluation_error": judged.why}
        return {
            "metric": judged.metric,
            "value": judged.value,
            "heldout_samples": judged.count,
            "heldout_loss": judged.loss,
            "evaluation_error": "",
        }

    @property
    def failure(self) -> str:
        """One sentence about an evaluation that failed; "" when it did not."""
        return not_judged(self.model, self.evaluation_error)

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
        write_whole(folder / "summary.json", json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n")
