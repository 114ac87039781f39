"""The calls between roles: names, and how ids and addresses stand in a message's fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from distqat.errors import BadFrame
from distqat.protocol.call_schema import fields_of, parse
from distqat.protocol.hop import Hop
from distqat.protocol.step_attempts import StepId

T = TypeVar("T")


def take(fields: Any, key: str, kind: type[T]) -> T:
    """A field of the kind it must have; an int serves for a float. Raises BadFrame."""
    value = fields.get(key) if isinstance(fields, Mapping) else None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return cast(T, float(value))
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BadFrame(f"field {key!r} must be {kind.__name__}, got {value!r:.80}")
    return value


def step_fields(id: StepId) -> dict[str, Any]:
    """A step id as fields."""
    return fields_of(id)


def parse_step(fields: Mapping[str, Any]) -> StepId:
    """Raises BadFrame."""
    return parse(StepId, fields)


__all__ = ["Hop", "parse_step", "step_fields", "take"]
