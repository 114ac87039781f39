"""Tensors in one safetensors file: streamed out with a digest, read back only if every byte is as written.

The layout is that of https://huggingface.co/docs/safetensors: eight bytes with the length of a JSON header,
the header, the tensors' bytes. It is written here rather than by the library so that a state is not copied in
memory, a full disk is an OSError, and a test can kill the writer between two tensors.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from distqat.checkpoint.atomic_folders import sync_folder, temporary_folder
from distqat.errors import CheckpointError
from distqat.failpoints import failpoint
from distqat.options import Options
from distqat.tensor_bytes import DTYPE_NAMES, flat_bytes

_CHUNK = 1 << 20


class FileEntry(Options):
    """What a manifest says of one file."""

    size: int
    """Bytes."""
    sha256: str


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> FileEntry:
    """Write and sync; equal tensors give equal bytes. Raises OSError, CheckpointError for a dtype."""
    return write_synced(path, tensor_chunks(tensors, metadata))


def write_synced(path: Path, chunks: Iterable[bytes | memoryview]) -> FileEntry:
    """Write a new file and sync it; what it holds."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for index, chunk in enumerate(chunks):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            if index == 0:
                file.flush()
                failpoint("checkpoint.temp_file")
        file.flush()
        failpoint("checkpoint.fsync")
        os.fsync(file.fileno())
    return FileEntry(size=size, sha256=digest.hexdigest())


def replace_file(path: Path, chunks: Iterable[bytes | memoryview], point: str | None = None) -> None:
    """Put a file in place of what is there, whole or not at all, synced. Raises OSError.

    `point` names the failpoint before the rename.
    """
    with temporary_folder(path.parent, path.name) as temporary:
        write_synced(temporary / path.name, chunks)
        if point is not None:
            failpoint(point)
        (temporary / path.name).replace(path)
        sync_folder(path.parent)


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """What the disk refuses as a CheckpointError that names the target."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "; make room or change param_mirror.checkpoint_dir" if full else ""
        raise CheckpointError(f"{target} could not be written: {error.strerror or error}{hint}") from error


def check_file(path: Path, entry: FileEntry) -> None:
    """Raises CheckpointError unless a file is the one that was written; reads it in pieces."""
    _check_size(path, entry)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    _check_digest(path, entry, digest.hexdigest())


def read_tensors(path: Path, entry: FileEntry) -> dict[str, Tensor]:
    """The tensors of a file. Raises CheckpointError unless its bytes are those that were written.

    Only safetensors are read: nothing here can run what a file holds.
    """
    _check_size(path, entry)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    _check_digest(path, entry, hashlib.sha256(data).hexdigest())
    try:
        return dict(safetensors.torch.load(data))
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error}); nothing else is read") from error


def _check_size(path: Path, entry: FileEntry) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if size != entry.size:
        reason = "it was cut short" if size < entry.size else "something was added"
        raise CheckpointError(f"{path} has {size} of {entry.size} bytes: {reason}")


def _check_digest(path: Path, entry: FileEntry, found: str) -> None:
    if found != entry.sha256:
        raise CheckpointError(
            f"{path} has digest {found[:12]}, its manifest says {entry.sha256[:12]}: "
            "bytes changed after writing"
        )


def tensor_chunks(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
) -> Iterator[bytes | memoryview]:
    """A safetensors file in pieces: the header, then one per tensor. Raises CheckpointError for a dtype."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPE_NAMES or not name or name == "__metadata__":
            raise CheckpointError(f"tensor {name!r} of {tensor.dtype} cannot be kept in a checkpoint")
    # Wide types first, as the format wants: every tensor then starts at a multiple of its item size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        code = DTYPE_NAMES[tensor.dtype].upper()
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield flat_bytes(tensors[name]).numpy().data
