"""Configurations and weights of pretrained models: from a folder or from the hub, only the tensors needed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distqat.errors import HubUnavailable, ModelError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def pretrained_config(source: str) -> dict[str, Any]:
    """The configuration of a folder or hub repository, as transformers writes it."""
    path = fetch(source, CONFIG)
    if path is None:
        raise ModelError(f"{source!r} has no {CONFIG}; is it a model of transformers?")
    given: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for key in ("architectures", "transformers_version", "torch_dtype", "dtype", "_name_or_path"):
        given.pop(key, None)
    return given


@torch.no_grad()
def load_weights(
    module: nn.Module, source: str, *, prefix: str, ties: Mapping[str, str], fresh: Collection[str] = ()
) -> list[str]:
    """Copy every persistent tensor of `module` from safetensors; other shards and tensors are not read.

    `prefix` is what a file of the bare model leaves out (`transformer.` of GPT-2); `ties` names, for a tensor
    that files leave out or name otherwise, the one that it equals. Those in `fresh` may be missing (the head
    of a model that was trained for something else): they stay as they are, and are returned. Raises
    ModelError for another one that is missing, or for another shape, HubUnavailable where a hub name is out
    of reach.
    """
    from safetensors import safe_open

    own = module.state_dict()
    places = _places(source)
    wanted: dict[str, list[tuple[str, str]]] = {}
    missing: list[str] = []
    for name in own:
        stored = _stored_name(name, places, prefix, ties)
        if stored is None and name in fresh:
            missing.append(name)
            continue
        if stored is None:
            raise ModelError(f"the weights of {source!r} hold no {name!r}; does the config belong to them?")
        wanted.setdefault(places[stored], []).append((name, stored))
    for file, names in wanted.items():
        path = fetch(source, file)
        if path is None:
            raise ModelError(f"{source!r} has no {file}, which its index names")
        with safe_open(path, framework="pt", device="cpu") as tensors:
            for name, stored in names:
                value = tensors.get_tensor(stored)
                if value.shape != own[name].shape:
                    shapes = f"{list(value.shape)}, the stage's is {list(own[name].shape)}"
                    raise ModelError(
                        f"{name!r} of {source!r} is {shapes}; do config and weights belong together?"
                    )
                own[name].copy_(value)
    return missing


def fetch(source: str, file: str) -> Path | None:
    """A file of a folder, or of a hub repository (its local cache first); None: it is not there."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
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
            f"{source!r} is no folder, and {file} of it cannot be fetched because the hub cannot be "
            "reached; check the network (HF_ENDPOINT, HF_HUB_OFFLINE), give a folder, or a "
            "config to train from scratch"
        ) from error
    except EntryNotFoundError:
        return None
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"{source!r} is neither a folder nor a model on the hub that you may read; set HF_TOKEN if it "
            "is gated"
        ) from error
    except OSError as error:
        raise HubUnavailable(f"{file} of {source!r} cannot be fetched: {error}") from error


def _places(source: str) -> dict[str, str]:
    """Which file holds each stored tensor."""
    index = fetch(source, INDEX)
    if index is not None:
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    path = fetch(source, WEIGHTS)
    if path is None:
        raise ModelError(f"{source!r} has neither {WEIGHTS} nor {INDEX}; convert its weights to safetensors")
    from safetensors import safe_open

    with safe_open(path, framework="pt", device="cpu") as tensors:
        return dict.fromkeys(tensors.keys(), WEIGHTS)


def _stored_name(name: str, places: Mapping[str, str], prefix: str, ties: Mapping[str, str]) -> str | None:
    for candidate in (name, ties.get(name)):
        for stored in (candidate, candidate and candidate.removeprefix(f"{prefix}.")):
            if stored in places:
                return stored
    return None
