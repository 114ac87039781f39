"""Code of users that registers models, tasks and data sets, loaded before a configuration is looked at.

A plugin is a Python file, a folder with an `__init__.py`, a module that can be imported, or an entry point
of an installed package in the group `distqat.plugins`. Every process of a run loads it for itself, with the
configuration; one that was forked from a process that has it already keeps what it has.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.metadata import entry_points
from pathlib import Path
from types import CodeType
from typing import Any

from distqat.config.pipeline_check import model_types
from distqat.errors import ConfigError, DistqatError
from distqat.failures import missing_import

GROUP = "distqat.plugins"
_MODULE_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_PREFIX = "distqat_plugin_"


@dataclass(frozen=True)
class Plugin:
    """A loaded plugin: `digest` is the sha256 of its text, `registered` pairs of kind and name."""

    name: str
    digest: str
    registered: frozenset[tuple[str, str]]


_LOADED: dict[Path, Plugin] = {}  # by source file
_entry_points_loaded = False


def loaded() -> tuple[Plugin, ...]:
    """What this process has loaded so far."""
    return tuple(_LOADED.values())


def is_path(name: str) -> bool:
    """Whether `--plugin NAME` means a file or folder, not a module."""
    return name.endswith(".py") or "/" in name


def absolute(name: str, base: Path) -> str:
    """`name` with a path made absolute, from `base`; names of modules stay as they are."""
    return str((base / Path(name).expanduser()).resolve()) if is_path(name) else name


def load_plugin(name: str) -> None:
    """Load what `absolute` gave a name for; what is loaded already stays as it is.

    Raises ConfigError with file and line of what the plugin does wrong; then nothing of it stays registered.
    """
    spec = _of_path(Path(name)) if is_path(name) else _of_module(name)
    _load(spec, name)


def load_installed() -> None:
    """Load the entry points of installed packages, once. Raises ConfigError, naming the package."""
    global _entry_points_loaded
    if _entry_points_loaded:
        return
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            _load(_of_module(point.module), point.module)
        except ConfigError as error:
            package = point.dist.name if point.dist is not None else "?"
            raise ConfigError(
                f"the plugin {point.name!r} of the installed package {package!r}: {error} "
                f"(without it: pip uninstall {package})"
            ) from error
    _entry_points_loaded = True


def _load(spec: ModuleSpec, name: str) -> None:
    file = Path(str(spec.origin)).resolve()
    if file in _LOADED or _is_imported(file):
        return
    model_types()  # not within what follows, which blames the plugin
    try:
        with _registering() as registered:
            _execute(spec)
    except (Exception, SystemExit) as error:  # a plugin is user code: whatever it raises is told by its line
        sys.modules.pop(spec.name, None)
        raise ConfigError(_complaint(error, file)) from error
    shown = file.name if is_path(name) and file.name != "__init__.py" else Path(name).name
    _LOADED[file] = Plugin(shown, _digest(file), frozenset(registered()))


def _is_imported(file: Path) -> bool:
    """Whether a module of this process is that file: one of ours, or the same by another name."""
    texts = (getattr(module, "__dict__", {}).get("__file__") for module in list(sys.modules.values()))
    return any(text == str(file) for text in texts)


def _of_path(path: Path) -> ModuleSpec:
    file = path / "__init__.py" if path.is_dir() else path
    if not file.is_file():
        missing = f"the folder {path} has no __init__.py" if path.is_dir() else f"{path}: no such file"
        raise ConfigError(f"{missing}; a plugin is a .py file, a package folder or a module's name")
    file = file.resolve()
    name = f"{_PREFIX}{path.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    folders = [str(file.parent)] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(
        name, file, loader=_Fresh(name, str(file)), submodule_search_locations=folders
    )
    assert spec is not None
    return spec


def _of_module(name: str) -> ModuleSpec:
    if not _MODULE_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not a plugin: expected a path to a .py file, or the name of a module")
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # of the package around it
        spec = None
    if spec is None or not spec.origin or not isinstance(spec.loader, Loader):
        raise ConfigError(
            f"no module {name!r} can be imported; is its package installed here? "
            f"A file is given by its path: ./{name.replace('.', '/')}.py"
        )
    return spec


class _Fresh(SourceFileLoader):
    """Compiles what the file says now: the time stamp of a cached one has a resolution."""

    def get_code(self, fullname: str) -> CodeType | None:
        return self.source_to_code(self.get_data(self.path), self.path)


def _execute(spec: ModuleSpec) -> None:
    if not isinstance(spec.loader, _Fresh):
        importlib.import_module(spec.name)
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)


@contextmanager
def _registering() -> Iterator[Callable[[], set[tuple[str, str]]]]:
    """Gives what is added to the registries meanwhile; puts them back when the body fails.

    Raises ConfigError when an entry was replaced, which assigning to a registry would do in silence.
    """
    registries = _registries()
    before = {kind: dict(registry) for kind, registry in registries.items()}

    def added() -> set[tuple[str, str]]:
        return {(kind, name) for kind, now in registries.items() for name in now.keys() - before[kind].keys()}

    try:
        yield added
        for kind, names in before.items():
            for name, entry in names.items():
                if registries[kind].get(name) is not entry:
                    raise ConfigError(f"it replaces the {kind} {name!r}; register yours under another name")
    except BaseException:
        for kind, names in before.items():
            registries[kind].clear()
            registries[kind].update(names)
        raise


def _registries() -> dict[str, dict[str, Any]]:
    """Everything that a plugin may add to. The built-in entries are there first, so that none is taken."""
    from distqat.codec.registry import CODECS
    from distqat.data.source import DATASETS
    from distqat.data.sources import embedded_sets  # noqa: F401  registers them
    from distqat.models import MODEL_TYPES
    from distqat.tasks import TASKS

    return {"model": MODEL_TYPES, "task": TASKS, "data set": DATASETS, "codec": CODECS}


def _complaint(error: BaseException, file: Path) -> str:
    """`mymodel.py:7: ZeroDivisionError: division by zero`: the last line of the plugin on the way there."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    inside = str(file.parent if file.name == "__init__.py" else file)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(inside)]
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else str(file)
    text = " ".join(str(error).split())
    said = text if isinstance(error, DistqatError) else f"{type(error).__name__}: {text}"
    return f"{place}: {said}{missing_import(error)}"


def _digest(file: Path) -> str:
    """Of a package: all its Python files with their places in it."""
    if file.name != "__init__.py":
        return hashlib.sha256(file.read_bytes()).hexdigest()
    whole = hashlib.sha256()
    for each in sorted(file.parent.rglob("*.py")):
        text = each.read_bytes()
        whole.update(f"{each.relative_to(file.parent).as_posix()} {len(text)}\n".encode() + text)
    return whole.hexdigest()
