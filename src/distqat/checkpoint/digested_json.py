"""Small JSON files that carry a digest over themselves, so that a flipped bit in a number is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError

from distqat.errors import CheckpointError

ModelT = TypeVar("ModelT", bound=BaseModel)

_CHECK = "check"


def seal(fields: Mapping[str, Any]) -> bytes:
    """The file that holds these fields; the same fields give the same bytes."""
    text = json.dumps({**fields, _CHECK: _digest(fields)}, indent=1, sort_keys=True, allow_nan=False)
    return text.encode() + b"\n"


def unseal(path: Path, data: bytes) -> dict[str, Any]:
    """The fields of a file. Raises CheckpointError unless it is as `seal` made it."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: cut short, or bytes changed after writing") from error
    if not isinstance(fields, dict) or fields.pop(_CHECK, None) != _digest(fields):
        raise CheckpointError(f"{path} does not fit its own digest: bytes changed after writing")
    return fields


def believed(kind: type[ModelT], path: Path, fields: Mapping[str, Any], format: int) -> ModelT:
    """The fields of a file as what they describe. CheckpointError: another format, a field is off."""
    if fields.get("format") != format:
        raise CheckpointError(f"{path} has format {fields.get('format')}, this release reads {format}")
    try:
        return kind.model_validate(fields, strict=True)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise CheckpointError(f"{path}: {where}: {error.errors()[0]['msg']}") from error


def as_json(values: Mapping[str, Any], what: str) -> dict[str, JsonValue]:
    """Values as such a file gives them back. Raises CheckpointError for what JSON does not hold."""
    try:
        plain: dict[str, JsonValue] = json.loads(json.dumps(dict(values), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{what} of a checkpoint must be JSON: {error}") from error
    return plain


def _digest(fields: Mapping[str, Any]) -> str:
    text = json.dumps(dict(fields), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
