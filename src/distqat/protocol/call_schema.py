"""How a call is described and checked: a frozen dataclass whose type hints say what may stand in its fields.

`fields_of` makes a dataclass to the plain map that travels, `parse` makes and checks it at the other side.
A field is an `int`, `float`, `str`, `bool`, `Any`, `None`, a literal, a tuple, a map with text keys, another
dataclass, or a union of `None` and one of these. `Bounds` limit a number, which is then finite, or the length
of a text; without them a text has at most 8192 characters, and a key of a map at most 512. A literal of one
value is a tag, by which one of several answers is known: it always travels.

Compatibility: `swarm.handshake` connects peers of one PROTOCOL_VERSION only. Within a version a field that
has its default is left out, what a peer does not know is ignored, and a new field needs a default. A field
that is renamed, removed or means something else needs a new version.

How a class is checked is worked out once. Checking a `train` call then takes 7 microseconds, no longer than
taking its fields one by one did.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from distqat.errors import BadFrame, SwarmError

A = TypeVar("A")
T = TypeVar("T")
Convert = Callable[[Any], Any]
"""Checks a value; raises ValueError with the rest of a sentence that begins with the field's name."""

FLAT = "flat"
"""Annotates a dataclass whose fields stand among those of the one that holds it."""
OTHERS = "others"
"""Annotates a map that takes all fields that the class does not name: figures that only people read."""
SERVER, CLIENT = "server", "client"


@dataclass(frozen=True)
class Bounds:
    """Least and most of a number, or of the length of a text."""

    least: float
    most: float = math.inf


Count = Annotated[int, Bounds(0, 2**63 - 1)]
Positive = Annotated[float, Bounds(0)]
Name = Annotated[str, Bounds(0, 512)]
Text = Annotated[str, Bounds(0, 8192)]


class Call(Generic[A]):
    """One call; `A` is its answer, or a union of those that it can have.

        class OpenStep(Call[StepOpened], method="open", served_by=(SERVER,)): ...

    `tensors` says which tensors go and come with it, `raises` which errors mean something special.
    """

    method: ClassVar[str]
    served_by: ClassVar[tuple[str, ...]]
    tensors: ClassVar[tuple[str, str]]
    raises: ClassVar[tuple[type[SwarmError], ...]]
    answers: ClassVar[tuple[type, ...]]

    def __init_subclass__(
        cls,
        *,
        method: str,
        served_by: tuple[str, ...],
        tensors: tuple[str, str] = ("", ""),
        raises: tuple[type[SwarmError], ...] = (),
    ) -> None:
        cls.method, cls.served_by, cls.tensors, cls.raises = method, served_by, tensors, raises
        (answer,) = get_args(cls.__orig_bases__[0])  # type: ignore[attr-defined]
        cls.answers = get_args(answer) if get_origin(answer) is types.UnionType else (answer,)
        CALLS[method] = cls

    def answer(self, fields: Mapping[str, Any]) -> A:
        """The answer in these fields: the first of `answers` whose required fields all stand there."""
        return cast(A, parse_any(self.answers, fields))


CALLS: dict[str, type[Call[Any]]] = {}
"""Every call by its method."""


@dataclass(frozen=True)
class _Field:
    name: str
    convert: Convert
    default: Any  # MISSING: it must be there
    how: str = ""  # FLAT, OTHERS or neither
    plain: bool = True  # its value travels as it is


def parse(kind: type[T], fields: Any) -> T:
    """A dataclass of these fields. Raises BadFrame that names the field."""
    try:
        return cast(T, _build(kind, fields))
    except ValueError as error:
        raise BadFrame(str(error)) from error


def parse_any(kinds: tuple[type[T], ...], fields: Any) -> T:
    """The first of `kinds` whose required fields all stand there. Raises BadFrame."""
    for kind in kinds[:-1]:
        required = _required(cast(Any, kind))
        if isinstance(fields, Mapping) and required <= fields.keys():
            return parse(kind, fields)
    return parse(kinds[-1], fields)


def fields_of(message: Any) -> dict[str, Any]:
    """What travels of a call or answer; fields that have their default do not."""
    fields: dict[str, Any] = {}
    kind: Any = type(message)
    for field in _plan(kind):
        value = getattr(message, field.name)
        if field.how:
            fields.update(fields_of(value) if field.how == FLAT else value)
        elif field.default is dataclasses.MISSING or value != field.default:
            fields[field.name] = value if field.plain else _plain(value)
    return fields


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return fields_of(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _build(kind: Any, fields: Any) -> Any:
    if not isinstance(fields, Mapping):
        raise ValueError(f"{kind.__name__} must be a map, got {fields!r:.80}")
    values = {}
    for field in _plan(kind):
        name = field.name
        if field.how:
            values[name] = field.convert(fields)
        elif name in fields:
            try:
                values[name] = field.convert(fields[name])
            except ValueError as error:
                raise ValueError(f"field {name!r} {error}") from error
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"field {name!r} of {kind.__name__} is missing")
    return kind(**values)


@cache
def _plan(kind: Any) -> tuple[_Field, ...]:
    hints, plan = get_type_hints(kind, include_extras=True), []
    for field in dataclasses.fields(kind):
        hint, default = hints[field.name], field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        inner, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if FLAT in notes:
            plan.append(_Field(field.name, _of_class(inner), default, FLAT))
        elif OTHERS in notes:
            named = frozenset(f.name for f in dataclasses.fields(kind))
            plan.append(_Field(field.name, _others(named), default, OTHERS))
        else:
            tag = get_origin(hint) is Literal and len(get_args(hint)) == 1
            default = dataclasses.MISSING if tag else default
            plan.append(_Field(field.name, _convert(hint), default, plain=_is_plain(hint)))
    return tuple(plan)


@cache
def _required(kind: Any) -> frozenset[str]:
    plan = _plan(kind)
    return frozenset(f.name for f in plan if f.default is dataclasses.MISSING and not f.how)


def _is_plain(hint: Any) -> bool:
    hints = list(get_args(hint)) if get_origin(hint) is not Literal else []
    inner = hint.__origin__ if get_origin(hint) is Annotated else hint
    if get_origin(hint) in (Union, types.UnionType):
        return all(map(_is_plain, hints))
    return inner in (int, float, str, bool, Any, type(None)) or get_origin(inner) is Literal


def _convert(hint: Any) -> Convert:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = next(note for note in args[1:] if isinstance(note, Bounds))
        return _bounded(_number if args[0] is float else _exactly(args[0]), bounds)
    if hint is str:
        return _convert(Text)
    if hint is Any:
        return lambda value: value
    if origin in (Union, types.UnionType):
        (inner,) = (_convert(arg) for arg in args if arg is not type(None))
        return lambda value: None if value is None else inner(value)
    if origin is Literal:
        return _literal(args)
    if origin is tuple:
        return _list(args)
    if origin is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return _map(_convert(args[1]))
    if dataclasses.is_dataclass(hint):
        return _of_class(cast(type, hint))
    return _number if hint is float else _exactly(hint)


def _exactly(kind: type) -> Convert:
    def convert(value: Any) -> Any:
        if type(value) is not kind:  # True is an int, and no number here
            raise ValueError(f"must be {kind.__name__}, got {value!r:.80}")
        return value

    return convert


def _number(value: Any) -> float:
    if isinstance(value, float):
        return value
    if type(value) is not int:
        raise ValueError(f"must be float, got {value!r:.80}")
    return float(value)


def _bounded(convert: Convert, bounds: Bounds) -> Convert:
    least, most = bounds.least, bounds.most

    def bounded(value: Any) -> Any:
        value = convert(value)
        size = len(value) if isinstance(value, str) else value
        if not least <= size <= most or size == math.inf:
            what = "have a length" if isinstance(value, str) else "be a number"
            raise ValueError(f"must {what} from {least:g} to {most:g}, got {value!r:.80}")
        return value

    return bounded


def _literal(allowed: tuple[Any, ...]) -> Convert:
    def convert(value: Any) -> Any:
        if not any(value is each or (type(value) is type(each) and value == each) for each in allowed):
            raise ValueError(f"must be {' or '.join(map(repr, allowed))}, got {value!r:.80}")
        return value

    return convert


def _list(hints: tuple[Any, ...]) -> Convert:
    items = tuple(_convert(hint) for hint in hints if hint is not ...)

    def convert(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"must be list, got {value!r:.80}")
        each = items * len(value) if hints[-1] is ... else items
        if len(each) != len(value):
            raise ValueError(f"must have {len(each)} items, got {value!r:.80}")
        return tuple(item(part) for item, part in zip(each, value, strict=True))

    return convert


def _map(item: Convert) -> Convert:
    key_of = _convert(Name)

    def convert(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError(f"must be dict, got {value!r:.80}")
        return {key_of(key): item(each) for key, each in value.items()}

    return convert


def _of_class(kind: type) -> Convert:
    return lambda value: _build(kind, value)


def _others(named: frozenset[str]) -> Convert:
    return lambda fields: {name: value for name, value in fields.items() if name not in named}
