"""Files of a pretrained model: of a folder, or of a repository on the hub."""

from __future__ import annotations

from pathlib import Path

from distqat.config_paths import find, looked_elsewhere
from distqat.errors import HubUnavailable, ModelError
from distqat.path_hints import is_path, missing_folder


def fetch(source: str, file: str) -> Path | None:
    """A file of a folder, or of a hub repository (its local cache first); None: it is not there.

    Raises ModelError for a folder that does not exist and a repository that may not be read, HubUnavailable
    where a hub name is out of reach.
    """
    folder = find(source)
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    if is_path(source):
        raise ModelError(f"pretrained: {source!r}: {missing_folder(source)}{looked_elsewhere(source)}")
    return _from_hub(source, file)


def _from_hub(source: str, file: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(hf_hub_download(source, file))
    except LocalEntryNotFoundError as error:
        raise HubUnavailable(
            f"{source!r} is not a folder ({missing_folder(source)}), and {file} of it cannot be fetched "
            "because the hub cannot be reached; check the network (HF_ENDPOINT, HF_HUB_OFFLINE), give a "
            "folder, or a config to train from scratch"
        ) from error
    except EntryNotFoundError:
        return None
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"{source!r} is neither a folder ({missing_folder(source)}) nor a model on the hub that you may "
            "read; set HF_TOKEN if it is gated"
        ) from error
    except OSError as error:
        raise HubUnavailable(f"{file} of {source!r} cannot be fetched: {error}") from error
