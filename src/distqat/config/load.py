"""From a YAML file and overrides to a Config, or to sentences that say what is wrong and where."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from distqat.config.fields import config_fields, nearest, section_at
from distqat.config.pipeline_check import check_names, teacher_path
from distqat.config.plugins import absolute, is_path, load_installed, load_plugin
from distqat.config.schema import Config, split_list
from distqat.config.yaml_source import KeyPath, YamlSource, dotted, parse
from distqat.config_paths import count_also_from, find, looked_at, refuse_twice
from distqat.errors import ConfigError

DEFAULT_CONFIG = "configs/resnet18.yaml"
PLUGINS: KeyPath = ("plugins",)


def load_config(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read `path` (None: defaults only) and set `overrides`, keyed by dotted path, on top.

    A path that is not a file but names a shipped config (`configs/resnet18.yaml`, `resnet18.yaml`,
    `resnet18`) means the shipped one. Raises ConfigError with a line per problem: `file:line: path: what`; a
    stage that nobody registered is one.
    """
    source = YamlSource("defaults") if path is None else read(path)
    beside = [Path(path).parent] if path is not None and Path(path).is_file() else []
    return resolve(source, overrides, beside)


def resolve(
    source: YamlSource, overrides: Mapping[str, Any] | None = None, beside: Iterable[Path] = ()
) -> Config:
    """The configuration of a source, with `overrides` on top; its paths count also from the folders `beside`.

    Plugins are loaded first: those of the source, and those of `overrides`, which do not replace them.
    Raises ConfigError as `load_config` does.
    """
    count_also_from(beside)
    changes = dict(_flatten(overrides or {}, ()))
    plugins = _load_plugins(source, changes)
    values = source.values
    for change, value in changes.items():
        values = _with(values, change, value)
    if plugins:
        values = _with(values, PLUGINS, plugins)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_report(error, source, changes)) from None
    except ConfigError as error:
        raise ConfigError(f"{source.name}: {error}") from None
    for bad in _not_finite(config.model_dump(), ()):
        raise ConfigError(f"{_place(bad, source, changes)}: {dotted(bad)}: must be a finite number")
    check_names(config, lambda stage: f"{_place(stage, source, changes)}: {dotted(stage)}")
    for path, name in read_paths(config):
        try:
            refuse_twice(name)
        except ConfigError as error:
            raise ConfigError(f"{_place(path, source, changes)}: {dotted(path)}: {error}") from None
    return config


def read_paths(config: Config) -> Iterator[tuple[KeyPath, str]]:
    """The keys whose values may be paths of something to read, and these values."""
    if config.start_from is not None:
        yield ("start_from",), config.start_from
    if teacher_path(config) is not None:
        yield ("quant", "teacher"), str(config.quant.teacher)
    data = config.data
    if data.dataset_name.startswith((".", "/", "~")):  # else a name of the hub, or of an embedded set
        yield ("data", "dataset_name"), data.dataset_name
    if data.tokenizer != "bytes" and not data.tokenizer.startswith("bpe:"):
        yield ("data", "tokenizer"), data.tokenizer
    for index, entry in enumerate(config.model_pipeline.pipeline):
        source = entry.kwargs.get("pretrained")
        if isinstance(source, str):
            yield ("model_pipeline", "pipeline", index, "pretrained"), source


def read(path: str | Path) -> YamlSource:
    """The source at `path`, or the shipped config of that name. Raises ConfigError."""
    if Path(path).is_file():
        try:
            return parse(Path(path).read_text("utf-8"), str(path))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise ConfigError(
                f"{path}:{line}: cannot be read: it is not UTF-8 text; save it as UTF-8"
            ) from None
    shipped = shipped_configs()
    name = re.sub(r"^(\./)?configs/", "", str(path)).removesuffix(".yaml")
    if name in shipped:
        return parse(shipped[name], f"configs/{name}.yaml")
    if Path(path).is_dir():
        raise ConfigError(
            f"{path}: no such file, it is a folder; name a YAML file, for example configs/resnet18.yaml"
        )
    close = nearest(name, shipped)
    hint = f"; did you mean 'configs/{close}.yaml'?" if close else ";"
    known = ", ".join(f"configs/{name}.yaml" for name in sorted(shipped))
    raise ConfigError(f"{path}: no such file{hint} shipped: {known}")


def shipped_configs() -> dict[str, str]:
    """Texts of the configs that come with the package, by name without suffix."""
    folder = resources.files("distqat") / "configs"
    return {
        entry.name.removesuffix(".yaml"): entry.read_text("utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    }


def _load_plugins(source: YamlSource, changes: Mapping[KeyPath, Any]) -> list[str]:
    """Load them and give their names, paths made absolute. The schema refuses other kinds of value."""
    load_installed()
    names: list[str] = []
    for given, flag in ((source.values.get("plugins"), ""), (changes.get(PLUGINS), "--plugin")):
        texts = split_list(given)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            continue
        for index, text in enumerate(texts):
            try:
                name = absolute(text, Path()) if flag else _plugin_of_file(text)
                load_plugin(name)
            except ConfigError as error:
                raise ConfigError(
                    f"{flag or f'{source.place((*PLUGINS, index))}: plugins'}: {error}"
                ) from error
            names.append(name)
    return list(dict.fromkeys(names))


def _plugin_of_file(text: str) -> str:
    """The absolute path, or the module, that a configuration file means."""
    if not is_path(text):
        return text
    refuse_twice(text)
    if not find(text).exists():
        raise ConfigError(f"there is no plugin {text!r} ({looked_at(text)})")
    return str(find(text).resolve())


def _flatten(overrides: Mapping[str, Any], prefix: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """A mapping for a section sets the keys in it; for anything else it is the value."""
    for key, value in overrides.items():
        path = (*prefix, *key.split("."))
        if isinstance(value, Mapping) and section_at(path):
            yield from _flatten(value, path)
        else:
            yield path, value


def _with(values: Mapping[str, Any], path: KeyPath, value: Any) -> dict[str, Any]:
    """A copy of `values` with `value` at `path`."""
    key, rest = str(path[0]), path[1:]
    if not rest:
        return {**values, key: value}
    inner = values.get(key)
    if inner is None:
        inner = {}
    if not isinstance(inner, Mapping):
        raise ConfigError(f"override {dotted(path)}: {key!r} holds {inner!r} and has no keys")
    return {**values, key: _with(inner, rest, value)}


def _place(path: KeyPath, source: YamlSource, changes: Mapping[KeyPath, Any]) -> str:
    """Where the user wrote the value at `path`: a flag or a line of the file."""
    for end in range(len(path), 0, -1):
        if path[:end] in changes:
            return "--" + re.sub(r"[._]", "-", dotted(path[:end]))
    return source.place(path)


def _report(error: ValidationError, source: YamlSource, changes: Mapping[KeyPath, Any]) -> str:
    problems = []
    for problem in error.errors(include_url=False):
        path: KeyPath = problem["loc"]
        text = f"{_place(path, source, changes)}: {dotted(path)}: {_sentence(problem)}"
        problems.append((source.line(path), text))
    return "\n".join(dict.fromkeys(text for _, text in sorted(problems, key=lambda pair: pair[0])))


def _sentence(problem: Mapping[str, Any]) -> str:
    """One of pydantic's problems in the words of our users."""
    kind, given = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        return _unknown_key(problem["loc"])
    if kind == "literal_error":
        known = re.findall(r"[^', ]+(?=')|\b\d+\b", problem["ctx"]["expected"])
        close = nearest(str(given), known)
        hint = f"; did you mean {close!r}?" if close else ";"
        return f"unknown value {given!r}{hint} known: {', '.join(known)}"
    if kind == "missing":
        return "missing"
    if kind in ("model_type", "model_attributes_type"):
        return (
            f"expected a section of `key: value` lines, got {'nothing' if given is None else _short(given)}"
        )
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    message = str(problem["msg"]).replace("Input should", "should")
    return f"{message}, got {_short(given)}"


def _unknown_key(path: KeyPath) -> str:
    key = str(path[-1])
    section: type[BaseModel] | None = section_at(path[:-1])
    close = nearest(key, section.model_fields) if section else None
    if close is None:  # right name, wrong section
        elsewhere = [field.path for field in config_fields() if field.path.rpartition(".")[2] == key]
        close = elsewhere[0] if elsewhere else None
    hint = (
        f"; did you mean {close!r}?"
        if close
        else f"; known: {', '.join(section.model_fields)}"
        if section
        else ""
    )
    return f"unknown key{hint}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _not_finite(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    """Paths of numbers that are infinite or not numbers; no field means anything by one."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _not_finite(inner, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _not_finite(inner, (*path, index))
