"""`data.options`: the keys that only a task and its data sets know."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from distqat.errors import TaskError
from distqat.options import Options

OptionsT = TypeVar("OptionsT", bound=Options)


def parse_options(kind: type[OptionsT], given: Mapping[str, Any], task: str) -> OptionsT:
    """`data.options` as the task's own section; TaskError names an unknown key with the nearest."""
    unknown = sorted(given.keys() - kind.model_fields.keys())
    if unknown:
        close = difflib.get_close_matches(unknown[0], kind.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        known = ", ".join(sorted(kind.model_fields)) or "none"
        raise TaskError(f"data.options has no key {unknown[0]!r} for task {task}; {hint}known: {known}")
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TaskError(f"data.options.{where} of task {task}: {first['msg']}") from error
