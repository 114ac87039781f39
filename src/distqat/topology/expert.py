"""The name of one replica of a stage."""

from __future__ import annotations

import re
from dataclasses import dataclass

_STAGE = re.compile(r"[A-Za-z0-9_-]+")
_UID = re.compile(r"([A-Za-z0-9_-]+)\.0\.(0|[1-9][0-9]{0,8})\.0")


@dataclass(frozen=True, order=True)
class ExpertId:
    """Replica `index` of `stage`; its text, the UID, is `{stage}.0.{index}.0` (`front.0.0.0`)."""

    stage: str
    index: int

    def __post_init__(self) -> None:
        if not _STAGE.fullmatch(self.stage):
            raise ValueError(f"stage {self.stage!r} may hold letters, digits, '_' and '-' only")
        if not 0 <= self.index < 10**9:
            raise ValueError(f"expert index {self.index} of stage {self.stage!r} is not in 0..999999999")

    def __str__(self) -> str:
        return f"{self.stage}.0.{self.index}.0"

    @property
    def uid(self) -> str:
        """The UID as it stands in the directory and in logs."""
        return str(self)

    @classmethod
    def parse(cls, uid: str) -> ExpertId:
        """The expert that `uid` names; ValueError when it is none."""
        match = _UID.fullmatch(uid)
        if match is None:
            raise ValueError(
                f"{uid[:80]!r} is not an expert UID; it reads {{stage}}.0.{{index}}.0, as front.0.0.0"
            )
        return cls(match[1], int(match[2]))
