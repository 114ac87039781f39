"""Entries under names that a plugin may add: the same definition twice is one, another one is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from distqat.errors import DistqatError

T = TypeVar("T", bound=Callable[..., object])


def enter(registry: dict[str, T], name: str, entry: T, *, kind: str, error: type[DistqatError]) -> None:
    """Put a class or function into a registry.

    The same object, or the same definition loaded twice (a user's file that two paths import), replaces what
    was there. Raises `error` when another definition has the name.
    """
    present = registry.get(name)
    if present is not None and present is not entry and _definition(present) != _definition(entry):
        raise error(
            f"{kind} {name!r} is already {_describe(present)}; register {_describe(entry)} under another name"
        )
    registry[name] = entry


def _definition(entry: object) -> tuple[object, object]:
    name = getattr(entry, "__qualname__", None)
    return getattr(entry, "__module__", None), id(entry) if name is None else name


def _describe(entry: object) -> str:
    name = getattr(entry, "__qualname__", None)
    return f"{getattr(entry, '__module__', '?')}.{name}" if name else repr(entry)
