"""Weights as they are published: in another layout, in shards, in half precision, as codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.families import reference, released, through
from benchmarks.family_configs import BLOCKS, FAMILIES
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distqat.errors import ModelError
from distqat.models import build_stage, hub_files, stored_weights
from distqat.models.pretrained import pretrained_config

EVERYDAY = ("gpt_neox", "mixtral", "qwen2_moe", "phimoe", "deepseek_v3", "gpt_oss")
QWEN = {"model_type": "qwen2", **FAMILIES["qwen2"]}
PROJECTION = "model.layers.{}.mlp.up_proj.weight"
NAMES = ("head", "body", "tail")


@pytest.mark.parametrize(
    "family", [f if f in EVERYDAY else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
)
@pytest.mark.filterwarnings("ignore")
def test_stages_load_what_transformers_publishes(family: str) -> None:
    assert released(family) == 0.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Qwen2 of five blocks, in one file of float32."""
    reference(QWEN).save_pretrained(tmp_path)
    return tmp_path


def stages(folder: Path, names: tuple[str, ...] = NAMES) -> list[nn.Module]:
    return [build_stage(f"hf.{name}", {"pretrained": str(folder), "stages": 3}).eval() for name in names]


def rewritten(folder: Path, **changes: dict[str, Tensor]) -> dict[str, Tensor]:
    """The folder's tensors; those named are replaced by what stands for them."""
    tensors = load_file(folder / "model.safetensors")
    floats = {name: tensors[name] for name in changes}
    for name, instead in changes.items():
        del tensors[name]
        tensors |= instead
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return floats


def say(folder: Path, **quantization: Any) -> None:
    """Write a `quantization_config`."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))


def loaded(folder: Path, name: str) -> Tensor:
    """One tensor of the full stage."""
    return build_stage("hf.full", {"pretrained": str(folder)}).state_dict()[name]


def test_half_precision_in_shards_becomes_float32(tmp_path: Path) -> None:
    whole = reference(QWEN).to(torch.bfloat16)
    whole.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    for part in stages(tmp_path):
        for name, tensor in part.state_dict().items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, whole.state_dict()[name].float())


def test_only_what_a_stage_needs_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a mixture of experts, whose tensors are merged: the tail does without the shards of the others."""
    config = {"model_type": "mixtral", **FAMILIES["mixtral"]}
    reference(config).save_pretrained(tmp_path, max_shard_size="10KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    fetched: set[str] = set()

    def noting(source: str, file: str) -> Path | None:
        fetched.add(file)
        return hub_files.fetch(source, file)

    monkeypatch.setattr(stored_weights, "fetch", noting)
    build_stage("hf.tail", {"pretrained": str(tmp_path), "layers": [BLOCKS - 1, BLOCKS]})
    behind = (f"model.layers.{BLOCKS - 1}.", "model.norm", "lm_head")
    own = {file for name, file in index.items() if name.startswith(behind)}
    assert fetched - {"model.safetensors.index.json"} == own < set(index.values())


@pytest.mark.parametrize("prefix", ["language_model.model", "model.language_model", "language_model"])
def test_a_model_that_sees_gives_its_language_model(folder: Path, prefix: str) -> None:
    """Its tensors are under `language_model`, beside those of the tower that sees."""
    before = through(stages(folder), torch.arange(12)[None])
    tensors = load_file(folder / "model.safetensors")
    for name in list(tensors):
        tensors[f"{prefix}.{name.removeprefix('model.')}"] = tensors.pop(name)
    tensors["model.visual.patch.weight"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors")
    assert torch.equal(through(stages(folder), torch.arange(12)[None]), before)


# codes


def fp8(weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Codes and inverse scales of blocks of `size` x `size`."""
    rows, columns = (-(-length // size) for length in weight.shape)
    scale = torch.empty(rows, columns)
    made = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i in range(rows):
        for j in range(columns):
            at = (slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size))
            scale[i, j] = weight[at].abs().max() / 448
            made[at] = (weight[at] / scale[i, j]).to(torch.float8_e4m3fn)
    return made, scale


@pytest.mark.parametrize("size", [128, 20, 16])  # one block; blocks that do not divide the matrix; even ones
def test_fp8_in_blocks(folder: Path, size: int) -> None:
    name = PROJECTION.format(2)  # [48, 32]
    made, scale = fp8(load_file(folder / "model.safetensors")[name], size)
    floats = rewritten(folder, **{name: {name: made, f"{name}_scale_inv": scale}})
    say(folder, quant_method="fp8", weight_block_size=[size, size])
    found = loaded(folder, name)
    assert torch.allclose(found, floats[name], atol=0.0, rtol=1 / 14)  # half of the last bit of e4m3
    assert found.abs().max() < 1


def test_experts_in_fp8_are_merged(tmp_path: Path) -> None:
    config = {"model_type": "qwen3_moe", **FAMILIES["qwen3_moe"]}
    whole = reference(config)
    whole.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    coded = {}
    for name in [name for name in tensors if ".experts." in name]:
        made, scale = fp8(tensors[name], 16)
        coded[name] = {name: made, f"{name}_scale_inv": scale}
    rewritten(tmp_path, **coded)
    say(tmp_path, quant_method="fp8", weight_block_size=[16, 16])
    for part in stages(tmp_path):
        for name, tensor in part.state_dict().items():
            assert torch.allclose(tensor, whole.state_dict()[name], atol=1e-6, rtol=1 / 14), name


@pytest.mark.parametrize("shape", [(), (48,), (48, 1), (48, 4), (6, 4)])
@pytest.mark.parametrize("zero", [False, True])
def test_int8_with_scales(folder: Path, shape: tuple[int, ...], zero: bool) -> None:
    """One scale, one per row, one per group of a row, one per block."""
    name = PROJECTION.format(0)
    scale, offset = torch.rand(shape) * 0.01 + 0.001, torch.randint(-3, 4, shape, dtype=torch.int8)
    made = torch.randint(-128, 128, (48, 32), dtype=torch.int8)
    rewritten(
        folder,
        **{name: {name: made, f"{name}_scale": scale} | ({f"{name}_zero_point": offset} if zero else {})},
    )
    say(folder, quant_method="compressed-tensors")
    rows, columns = ((*shape, 1, 1) if shape else (1, 1))[:2]
    expected = torch.empty(48, 32)
    for i in range(48):
        for j in range(32):
            at = i * rows // 48 * columns + j * columns // 32
            shift = float(offset.flatten()[at]) if zero else 0.0
            expected[i, j] = (float(made[i, j]) - shift) * float(scale.flatten()[at])
    assert torch.allclose(loaded(folder, name), expected, atol=0.0, rtol=1e-6)


def test_int8_of_bitsandbytes(folder: Path) -> None:
    name = PROJECTION.format(0)
    weight = load_file(folder / "model.safetensors")[name]
    largest = weight.abs().amax(dim=1)
    made = (weight / largest[:, None] * 127).round().to(torch.int8)
    rewritten(folder, **{name: {name: made, name.replace("weight", "SCB"): largest}})
    assert torch.allclose(loaded(folder, name), weight, atol=float(largest.max()) / 254 * 1.01)


def test_mxfp4_of_gpt_oss(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    config = {"model_type": "gpt_oss", **FAMILIES["gpt_oss"], "intermediate_size": 32}
    reference(config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    expected, coded = {}, {}
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, width, out = tensors[name].shape
        blocks = torch.randint(0, 256, (experts, out, width // 32, 16), dtype=torch.uint8)
        scales = torch.randint(118, 124, (experts, out, width // 32), dtype=torch.uint8)
        expected[name] = convert_moe_packed_tensors(blocks, scales).float()
        coded[name] = {f"{name}_blocks": blocks, f"{name}_scales": scales}
    rewritten(tmp_path, **coded)
    say(tmp_path, quant_method="mxfp4")
    state = build_stage("hf.full", {"pretrained": str(tmp_path)}).state_dict()
    assert len(expected) == 2 * BLOCKS
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("instead", "said"),
    [
        (
            {"qweight": torch.zeros(4, 32, dtype=torch.int32)},
            "but qweight (quant_method: gptq). Take a release",
        ),
        (
            {"weight": torch.zeros(48, 32, dtype=torch.float8_e4m3fn)},
            "holds F8_E4M3 codes (quant_method: gptq)",
        ),
        (
            {"weight": torch.zeros(48, 16, dtype=torch.uint8), "weight_scale": torch.ones(48, 2)},
            "holds U8 codes",
        ),
        (
            {"weight": torch.zeros(48, 32, dtype=torch.int8), "weight_scale": torch.ones(7)},
            "scale of 'model.layers.0.mlp.up_proj.weight' is [7], which does not fit its [48, 32] codes",
        ),
    ],
)
def test_codes_that_are_not_known_are_refused(folder: Path, instead: dict[str, Tensor], said: str) -> None:
    name = PROJECTION.format(0)
    rewritten(folder, **{name: {name.replace("weight", key): value for key, value in instead.items()}})
    say(folder, quant_method="gptq")
    with pytest.raises(ModelError) as caught:
        stages(folder, ("head",))
    assert name in str(caught.value)
    assert said in str(caught.value)
    if "does not fit" in said:
        return
    with torch.device("meta"), pytest.raises(ModelError) as caught:  # before a server is started
        build_stage("hf.head", {"pretrained": str(folder), "stages": 3})
    assert said in str(caught.value)
    stages(folder, ("tail",))  # which has no part in it


# files


def test_infinity_in_a_configuration(tmp_path: Path) -> None:
    text = '{"model_type": "bamba", "time_step_limit": [0.0, {"__float__": "Infinity"}], "torch_dtype": "x"}'
    (tmp_path / "config.json").write_text(text)
    assert pretrained_config(str(tmp_path)) == {"model_type": "bamba", "time_step_limit": [0.0, float("inf")]}


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("config.json", "{", "config.json is not JSON"),
        ("config.json", "[]", "holds no configuration"),
        ("model.safetensors", "cut short", "model.safetensors is damaged or was not written to its end"),
    ],
)
def test_damaged_files_are_named(folder: Path, file: str, text: str, said: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(ModelError, match=said):
        stages(folder, ("head",))


def test_a_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mymodel").mkdir()
    shutil.copy(__file__, tmp_path / "mymodel")
    with pytest.raises(ModelError, match=f"there is no folder {tmp_path}/mymodl; did you mean 'mymodel'?"):
        build_stage("hf.head", {"pretrained": "./mymodl", "stages": 2})
    with pytest.raises(ModelError, match=r"'./mymodel' has no config.json"):
        build_stage("hf.head", {"pretrained": "./mymodel", "stages": 2})
