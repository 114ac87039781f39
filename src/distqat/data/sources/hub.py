"""Data sets of the Hugging Face hub, streamed: nothing is downloaded before it is needed.

`HF_TOKEN` and `HF_ENDPOINT` are read by the Hugging Face libraries themselves.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from distqat.data.options import DataOptions
from distqat.data.source import DATASETS
from distqat.data.sources.hub_rows import HubRows, encoded, network_errors, quiet_datasets
from distqat.data.sources.sample_stream import SampleStream, SplitOptions, heldout_split
from distqat.data.text.documents import ARTICLE
from distqat.errors import DataError, HubUnavailable

BARE_NAMES = {  # names that papers use, and from before the hub had owners
    "wikitext": "Salesforce/wikitext",
    "c4": "allenai/c4",
    "pile": "monology/pile-uncopyrighted",
    "tiny-shakespeare": "Trelis/tiny-shakespeare",
    "tiny_shakespeare": "Trelis/tiny-shakespeare",
}
CONFIGS = {"Salesforce/wikitext": "wikitext-2-raw-v1", "allenai/c4": "en"}  # where none is named
LINES = {"Salesforce/wikitext": ARTICLE}  # data sets whose rows are lines: what begins a document
PROBE_TIMEOUT_S = 15.0
READ_RETRIES = 3  # the libraries' own 20 would wait for about ten minutes
REPO_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


def open_hub(options: DataOptions, *, seed: int) -> SampleStream:
    """A split of a hub data set, pinned to the revision found at the start.

    Raises HubUnavailable, DataError.
    """
    name = BARE_NAMES.get(options.dataset_name, options.dataset_name)
    config = options.dataset_config or CONFIGS.get(name)
    splits, revision = _open(name, config)
    train = options.dataset_split
    if train not in splits:
        raise DataError(f"data set {name!r} has no split {train!r}; known: {', '.join(splits)}")
    held = heldout_split(splits, train)
    rows = {
        each: HubRows(encoded(splits[each]), f"{name}, split {each}", partial(_unreachable, name))
        for each in (train, held)
        if each is not None
    }
    split = SplitOptions(
        name,
        f"{name}/{config or 'default'}/{train}@{revision}",
        rows[train],
        None if held is None else rows[held],
        document_start=LINES.get(name),
    )
    return SampleStream(options, split, seed=seed)


def _open(name: str, config: str | None) -> tuple[Mapping[str, Any], str]:
    """All splits as streams, and the revision that they are pinned to."""
    if not REPO_ID.fullmatch(name):
        raise DataError(
            f"{name!r} is not a name of a data set; {nearest(name)}expected 'name' or 'owner/name', "
            "'digits', 'python_docs', or a path that begins with ./ or /"
        )
    datasets = quiet_datasets()
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    for setting in ("STREAMING_READ_MAX_RETRIES", "STREAMING_OPEN_MAX_RETRIES"):
        setattr(datasets.config, setting, READ_RETRIES)
    try:
        revision = HfApi().dataset_info(name, timeout=PROBE_TIMEOUT_S).sha
    except HfHubHTTPError as error:
        raise _refused(name, error) from error
    except network_errors() as error:
        raise _unreachable(name) from error
    try:
        return datasets.load_dataset(name, config, streaming=True, revision=revision), str(revision)
    except (
        ValueError,
        FileNotFoundError,
    ) as error:  # its words for a wrong configuration or an odd repository
        raise DataError(f"data set {name!r} cannot be opened: {_one_line(error)}") from error
    except network_errors() as error:
        raise _unreachable(name) from error


def nearest(name: str) -> str:
    """A hint for a name that may be a slip, of an embedded data set or of a path without its `./`."""
    if Path(name).exists():
        return f"did you mean the path './{name}'? "
    known = [*DATASETS, *BARE_NAMES]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}? " if close else ""


def _refused(name: str, error: Exception) -> DataError:
    """The hub answered, with an HTTP error."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None and status >= 500:
        return _unreachable(name)
    if status in (401, 403, 404):
        return DataError(
            f"the hub has no data set {name!r} that you may read (HTTP {status}): {nearest(name)}"
            "check data.dataset_name, and set HF_TOKEN if it is private or gated"
        )
    return DataError(f"the hub refused data set {name!r}: {_one_line(error)}")


def _unreachable(name: str) -> HubUnavailable:
    return HubUnavailable(
        f"the data set {name!r} cannot be read because the hub cannot be reached; {nearest(name)}"
        "check the network (HF_ENDPOINT, HF_HUB_OFFLINE) or train offline with data.dataset_name: "
        "'digits' (images) or 'python_docs' (text)"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
