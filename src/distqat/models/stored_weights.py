"""The weights of a folder or hub repository: which tensors there are, and each when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from distqat.errors import ModelError
from distqat.models import stored_codes
from distqat.models.hub_files import fetch

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class StoredWeights:
    """Tensors by name. A file is opened, of the hub also fetched, when the first tensor of it is needed."""

    def __init__(self, source: str, quantization: Mapping[str, Any]) -> None:
        """`quantization` is the part of the configuration that says how codes are to be read.

        Raises ModelError where weights are missing, HubUnavailable where a hub name is out of reach.
        """
        self.source = source
        self._quantization = quantization
        self._places = _places(source)
        self._files: dict[str, Any] = {}
        self._open = ExitStack()

    def __enter__(self) -> StoredWeights:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def names(self) -> list[str]:
        """Of all tensors; codes in blocks under the name of what they stand for."""
        blocks = {
            name.removesuffix(stored_codes.BLOCKS)
            for name in self._places
            if name.endswith(stored_codes.BLOCKS)
        }
        packed = {name for name in blocks if name + stored_codes.BLOCK_SCALES in self._places}
        return [*self._places, *packed]

    def read(self, name: str, *, floats: bool = True) -> Tensor:
        """One tensor, on the CPU. `floats`: codes as what they stand for. Raises ModelError."""
        if name not in self._places:
            parts = (
                self._tensor(name + suffix) for suffix in (stored_codes.BLOCKS, stored_codes.BLOCK_SCALES)
            )
            return stored_codes.floats_of_blocks(*parts)
        scale = self.scale_of(name) if floats else None
        if scale is None:
            return self._tensor(name)
        return stored_codes.floats_of(name, scale, self._beside, stored_codes.block_sizes(self._quantization))

    def scale_of(self, name: str) -> str | None:
        """The scale that a tensor of codes needs; None: it holds floats. Raises ModelError as `read` does."""
        kind = self._file(name).get_slice(name).get_dtype() if name in self._places else "F32"
        if kind in stored_codes.FLOATS:
            return None
        return stored_codes.scale_of(name, kind, self._places, self._quantization)

    def instead_of(self, name: str) -> str:
        """What the files hold in the place of a tensor that they lack, as the end of a sentence."""
        owner = name.rpartition(".")[0]
        found = sorted(each for each in self._places if owner and each.rpartition(".")[0] == owner)
        method = self._quantization.get("quant_method")
        if not found or not method:
            return "; does the config belong to them?"
        shown = ", ".join(each.rpartition(".")[2] for each in found[:4])
        return f", but {shown} (quant_method: {method}). {stored_codes.INSTEAD}"

    def _beside(self, name: str) -> Tensor | None:
        return self._tensor(name) if name in self._places else None

    def _tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._file(name).get_tensor(name)
        return tensor

    def _file(self, name: str) -> Any:
        from safetensors import SafetensorError, safe_open

        place = self._places[name]
        if place not in self._files:
            path = fetch(self.source, place)
            if path is None:
                raise ModelError(f"{self.source!r} has no {place}, which its index names")
            try:
                opened = safe_open(path, framework="pt", device="cpu")
            except SafetensorError as error:
                raise ModelError(f"{path} is damaged or was not written to its end: {error}") from error
            self._files[place] = self._open.enter_context(opened)
        return self._files[place]


def _places(source: str) -> dict[str, str]:
    """Which file holds each stored tensor."""
    index = fetch(source, INDEX)
    if index is not None:
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    path = fetch(source, WEIGHTS)
    if path is None:
        raise ModelError(f"{source!r} has neither {WEIGHTS} nor {INDEX}; convert its weights to safetensors")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as tensors:
            return dict.fromkeys(tensors.keys(), WEIGHTS)
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged or was not written to its end: {error}") from error
