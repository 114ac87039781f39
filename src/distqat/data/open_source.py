"""From `data.dataset_name` to its source: a registered name, a path of this host, or a name of the hub."""

from __future__ import annotations

from distqat.data.options import DataOptions
from distqat.data.source import DATASETS, Opener, Source
from distqat.data.sources import embedded_sets  # noqa: F401  registers them
from distqat.data.sources.local_files import is_local
from distqat.errors import DataError, DistqatError
from distqat.failures import describe


def open_source(options: DataOptions, *, seed: int) -> Source:
    """The source that the configuration names; embedded names are looked up first.

    May wait for the hub (bounded); call it off the event loop.

    Raises:
        HubUnavailable: the hub cannot be reached.
        DataError: the data set, its configuration or its split does not exist.
    """
    try:
        return _opener(options.dataset_name)(options, seed)
    except DistqatError:
        raise
    except Exception as error:  # what a plugin, or a library that reads files, raises it will raise again
        raise DataError(
            f"the data set {options.dataset_name!r} cannot be opened: {describe(error)}"
        ) from error


def _opener(name: str) -> Opener:
    if name in DATASETS:
        return DATASETS[name]
    if is_local(name):
        from distqat.data.sources.local_set import open_local

        return lambda options, seed: open_local(options, seed=seed)
    from distqat.data.sources.hub import open_hub

    return lambda options, seed: open_hub(options, seed=seed)
