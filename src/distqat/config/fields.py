"""The fields of the configuration as a flat list, for flags, help and suggestions."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from distqat.config.schema import Config


@dataclass(frozen=True)
class ConfigField:
    """One value that a user may set: `diloco.inner_steps`, `--diloco-inner-steps`."""

    path: str
    annotation: Any
    default: Any
    doc: str

    @property
    def flag(self) -> str:
        """The flag on the command line: `--diloco-inner-steps`."""
        return "--" + self.path.replace(".", "-").replace("_", "-")

    @property
    def section(self) -> str:
        """The dotted path of the section that the key is in; empty at the top level."""
        return self.path.rpartition(".")[0]

    @property
    def is_bool(self) -> bool:
        """Whether the flag has a `--no-` form."""
        return bool in _members(self.annotation)

    @property
    def is_text(self) -> bool:
        """Whether the command line's text is the value as it stands."""
        return any(member is str or isinstance(member, str) for member in _members(self.annotation))

    @property
    def is_text_list(self) -> bool:
        """Whether the value is a list of texts, which the command line separates by commas."""
        return _item(self.annotation) is str

    @property
    def is_number(self) -> bool:
        """Whether a value that is not a number is an error."""
        return not self.is_bool and any(member in (int, float) for member in _members(self.annotation))

    @property
    def choices(self) -> list[str]:
        """The names that a Literal allows, else nothing."""
        return [member for member in _members(self.annotation) if isinstance(member, str)]


@cache
def config_fields() -> tuple[ConfigField, ...]:
    """Every field of Config, depth first in the order of the schema."""
    return tuple(_walk(Config, ""))


def field_at(path: str) -> ConfigField | None:
    """The field with this dotted path."""
    return next((field for field in config_fields() if field.path == path), None)


def section_at(path: Iterable[str | int]) -> type[BaseModel] | None:
    """The model behind a section's path; list indices and dict keys step into the items."""
    model: type[BaseModel] | None = Config
    items: Any = None
    for part in path:
        if items is not None:
            model, items = _section(items), None
        elif model is None or part not in model.model_fields:
            return None
        else:
            annotation = model.model_fields[str(part)].annotation
            model = _section(annotation)
            items = None if model else _item(annotation)
    return model


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return close[0] if close else None


def _walk(model: type[BaseModel], prefix: str) -> Iterator[ConfigField]:
    for name, info in model.model_fields.items():
        section = _section(info.annotation)
        if section is not None:
            yield from _walk(section, f"{prefix}{name}.")
        else:
            yield ConfigField(f"{prefix}{name}", info.annotation, _default(info), info.description or "")


def _default(info: FieldInfo) -> Any:
    return None if info.is_required() else to_jsonable_python(info.get_default(call_default_factory=True))


def _members(annotation: Any) -> list[Any]:
    """Types of a union, names of a Literal: what a value may be."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin is Literal:
        return list(typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return [member for option in typing.get_args(annotation) for member in _members(option)]
    return [annotation]


def _section(annotation: Any) -> type[BaseModel] | None:
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def _item(annotation: Any) -> Any:
    for member in _members(annotation):
        if typing.get_origin(member) in (list, tuple):
            return typing.get_args(member)[0]
        if typing.get_origin(member) is dict:
            return typing.get_args(member)[1]
    return None
