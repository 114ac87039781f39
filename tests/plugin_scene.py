"""Plugins that tests load are gone after them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distqat.config import plugins
from distqat.data.source import DATASETS
from distqat.data.sources import embedded_sets  # noqa: F401  registers its data sets before they are remembered
from distqat.models import MODEL_TYPES
from distqat.models import registry as models
from distqat.tasks import TASKS


@contextmanager
def forgotten_plugins() -> Iterator[None]:
    """Registries, modules and the list of what is loaded are put back at the end."""
    registries: list[dict[str, Any]] = [MODEL_TYPES, models._SAMPLE_INPUTS, TASKS, DATASETS, plugins._LOADED]  # type: ignore[list-item]
    before = [dict(registry) for registry in registries]
    modules = set(sys.modules)
    plugins._LOADED.clear()
    try:
        yield
    finally:
        for registry, entries in zip(registries, before, strict=True):
            registry.clear()
            registry.update(entries)
        for name in set(sys.modules) - modules:
            if name.startswith(("distqat_plugin_", "plugin_of_a_test")):
                del sys.modules[name]
