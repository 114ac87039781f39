from __future__ import annotations

from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.unit.checkpoint.states import same_bits, shared_tensors

from distqat.checkpoint.tensor_file import check_file, read_tensors, write_tensors
from distqat.errors import CheckpointError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)), max_size=6))
def test_the_library_reads_what_is_written(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[torch.dtype, list[int]]]
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    tensors = {
        f"n{i}.é": torch.randint(0, 2, tuple(shape)).to(dtype) for i, (dtype, shape) in enumerate(kinds)
    }
    entry = write_tensors(path, tensors, {"format": "pt"})
    assert same_bits(load_file(path), tensors)
    assert same_bits(read_tensors(path, entry), tensors)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_equal_tensors_give_equal_files(tmp_path: Path) -> None:
    tensors = shared_tensors(3)
    one = write_tensors(tmp_path / "one", tensors)
    other = write_tensors(tmp_path / "other", dict(reversed(tensors.items())))
    assert one == other
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_strides_do_not_matter(tmp_path: Path) -> None:
    x = torch.arange(12.0).reshape(3, 4)
    entry = write_tensors(tmp_path / "x", {"x": x.T, "y": x[:, 1]})
    read = read_tensors(tmp_path / "x", entry)
    assert torch.equal(read["x"], x.T)
    assert torch.equal(read["y"], x[:, 1])


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x"
    entry = write_tensors(path, {"x": torch.arange(4, dtype=torch.uint8)})
    good = path.read_bytes()
    for position in range(0, len(good), 7):
        path.write_bytes(
            good[:position] + bytes([good[position] ^ (1 << position % 8)]) + good[position + 1 :]
        )
        for read in (read_tensors, check_file):
            with pytest.raises(CheckpointError, match="bytes changed"):
                read(path, entry)


def test_a_dtype_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="complex64"):
        write_tensors(tmp_path / "x", {"x": torch.zeros(1, dtype=torch.complex64)})
