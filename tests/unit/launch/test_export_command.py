"""`distqat export` and `distqat predict` from a model file to an answer."""

from __future__ import annotations

import json
import shutil
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.unit.export.quantized import CHANGES, quantized, state_of, tiny_config

from distqat.checkpoint import write_model
from distqat.config import load_config
from distqat.distributed.assembly.run_notes import note_classes
from distqat.distributed.assembly.stage_factory import open_data
from distqat.distributed.coordination.model_saving import save_model
from distqat.errors import ExportError
from distqat.export import codes_file, export_request
from distqat.export.export_request import FORMATS
from distqat.export.onnx import integer_weights
from distqat.export.predict import Predictor
from distqat.launch import cli

FLAGS = ["--config-path", "configs/mlp.yaml", "--latency-s", "0", "--samples", "64"]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model, _, _ = quantized(tiny_config("mlp"))
    write_model(path, state_of(model), {})
    return path


@pytest.fixture(scope="module")
def exported(model_file: Path) -> Path:
    assert cli.main(["export", str(model_file), "--out", str(model_file.parent / "out"), *FLAGS]) == 0
    return model_file.parent / "out"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--samples", "0"], "--samples 0: give at least 1"),
        (["--stress", "-5"], "--stress -5: give 0 or more"),
        (["--agreement", "99"], "--agreement 99.0: give a share, 0 to 1"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(
    flags: list[str], said: str, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(model_file), "--out", str(tmp_path / "out"), *FLAGS, *flags]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_weight_only_model_has_no_integer_products(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(model_file), "--out", str(tmp_path), *FLAGS, "--quant-activation-method", "none"]
    assert cli.main(words) == 1
    assert "activations are floats (quant.activation.method: none)" in capsys.readouterr().err


def test_predict_finds_the_file_among_all_formats(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "onnx-int8").mkdir()
    shutil.copy(exported / "model.onnx", tmp_path / "onnx-int8")
    assert Predictor(tmp_path).description.task_type == "cv"


def test_the_report_lies_beside_the_model(exported: Path) -> None:
    report = json.loads((exported / "report.json").read_text())
    assert report["passed"]
    assert report["agreement"] == 1
    assert report["stress"]["places"] >= 3600
    assert report["stress"]["agreement"] == 1
    ran = report["operations"]
    assert (ran["quantizable"], ran["integer"], ran["share"]) == (3, 3, 1)
    assert (ran["by_operator"], ran["in_float"], ran["attention"]) == ({"QGemm": 3}, {}, 0)
    assert set(report["metrics"]) == {"float", "fake-quantized", "exported"}
    assert report["sizes"]["integer_file"] == (exported / "model.onnx").stat().st_size
    assert report["sizes"]["weights_ratio"] < 0.3
    assert {row["batch"] for row in report["latencies"]} == {1, 64}
    assert (exported / "report.md").read_text().startswith("# Export of model ")


@pytest.mark.parametrize("kind", ["png", "jpg", "npy"])
def test_an_image_is_answered(kind: str, exported: Path, tmp_path: Path, capsys: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 9), dtype=np.uint8)
    path = tmp_path / f"digit.{kind}"
    np.save(path, pixels) if kind == "npy" else Image.fromarray(pixels).save(path)
    assert cli.main(["predict", str(exported), str(path), "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    shares = [float(line.split("%")[0]) for line in lines]
    assert shares == sorted(shares, reverse=True)
    assert all(line.split()[-1] in map(str, range(10)) for line in lines)


def test_classes_are_called_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """From folders of pictures into the run's card, the file and the answer."""
    for shade, name in enumerate(("cat", "dog")):
        for split, count in (("train", 8), ("test", 8)):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for number in range(count):
                picture = Image.new("L", (8, 8), 100 * shade + number)
                picture.save(tmp_path / "photos" / split / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    changes = {
        "data.dataset_name": "./photos",
        "model_pipeline.pipeline": [{"model_name": "mlp.full", "num_classes": 2}],
    }
    config = load_config("configs/mlp.yaml", changes)
    model, _, _ = quantized(config)
    note_classes(config, open_data(config))
    path = save_model(config, {"full": next(iter(model.children()))})
    words = [
        "export",
        str(path),
        "--out",
        "out",
        "--latency-s",
        "0",
        "--samples",
        "8",
        "--stress",
        "0",
        "--agreement",
        "0",
    ]
    assert cli.main(words) in (0, 1)  # an untrained model's answers may be ties
    assert cli.main(["predict", "out", "photos/test/cat/0.png", "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert {line.split()[-1] for line in lines} == {"cat", "dog"}


def test_a_sabotaged_export_fails_and_names_the_layer(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    real = integer_weights.quantized_codes

    def sabotaged(weight: Any, *rest: Any) -> Any:
        codes = real(weight, *rest)
        return -codes if weight.shape == (128, 128) else codes  # layer2's

    monkeypatch.setattr(integer_weights, "quantized_codes", sabotaged)
    assert cli.main(["export", str(model_file), "--out", str(tmp_path), *FLAGS]) == 1
    said = capsys.readouterr().out
    assert "the first layer that disagrees is back.fc.input_quant" in said  # which takes what layer2 gives
    assert json.loads((tmp_path / "report.json").read_text())["passed"] is False


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [([], 0.999), (["--format", "gguf"], 0.99), (["--format", "gguf", "--agreement", "0.5"], 0.5)],
)
def test_each_format_has_its_own_agreement(
    flags: list[str], wanted: float, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def export_as(name: str, request: Any) -> Any:
        asked.append(request)
        raise ExportError("asked")

    monkeypatch.setattr(export_request, "export_as", export_as)
    assert cli.main(["export", str(model_file), "--out", str(tmp_path), *FLAGS, *flags]) == 1
    assert asked[0].expected.agreement == wanted


@pytest.mark.slow
def test_a_text_is_gone_on_with(tmp_path: Path, capsys: Any) -> None:
    model, _, _ = quantized(tiny_config("distilgpt2"))
    write_model(tmp_path / "model.safetensors", state_of(model), {})
    pipeline = json.dumps(CHANGES["distilgpt2"]["model_pipeline.pipeline"])
    flags = ["--config-path", "configs/distilgpt2.yaml", "--quant-enabled", "--data-sequence-length", "12"]
    words = [
        *flags,
        "--model-pipeline-pipeline",
        pipeline,
        "--latency-s",
        "0",
        "--samples",
        "32",
        "--stress",
        "0",
    ]
    out = tmp_path / "out"
    code = cli.main(["export", str(tmp_path / "model.safetensors"), "--out", str(out), *words])
    assert code in (0, 1)  # a random model's answers are close to ties
    assert cli.main(["predict", str(out), "def f(x):"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 3


@pytest.mark.slow
def test_a_recording_is_written_down(tmp_path: Path, capsys: Any) -> None:
    config = load_config("configs/wav2vec2.yaml", {"quant.enabled": True})
    model, _, _ = quantized(config, batches=1, frozen=False)  # as a run writes it: weight norm is not settled
    write_model(tmp_path / "model.safetensors", state_of(model), {})
    out, sound = tmp_path / "out", tmp_path / "sound.wav"
    flags = [
        "--config-path",
        "configs/wav2vec2.yaml",
        "--quant-enabled",
        "--latency-s",
        "0",
        "--samples",
        "8",
        "--stress",
        "0",
    ]
    code = cli.main(["export", str(tmp_path / "model.safetensors"), "--out", str(out), *flags])
    assert code in (0, 1)  # a random model's answers are close to ties
    ran = json.loads((out / "report.json").read_text())["operations"]
    assert ran["integer"] == ran["quantizable"] > 20
    noise = np.random.default_rng(1).normal(scale=3000, size=9000).astype("<i2")
    write_wave(sound, noise.tobytes(), rate=8000)
    capsys.readouterr()
    assert cli.main(["predict", str(out), str(sound)]) == 0
    assert set(capsys.readouterr().out.strip()) <= set("'ABCDEFGHIJKLMNOPQRSTUVWXYZ ")


@pytest.fixture
def two_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fits a perceptron, and one that does not."""
    for name in set(FORMATS) - {"safetensors", "torchao"}:
        monkeypatch.delitem(FORMATS, name)


@pytest.mark.usefixtures("two_formats")
def test_all_formats_are_one_table(model_file: Path, tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["export", "--all", str(model_file), "--out", str(tmp_path), *FLAGS]) == 0
    head, made, refused, where = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "format"
    assert made.split()[:2] == ["safetensors", "100.000%"]
    assert made.endswith("passed")
    assert "not made: front.layer1: torchao quantizes activations per token" in refused
    assert where == f"report  {tmp_path / 'report.md'}"
    assert "](safetensors/report.md)" in (tmp_path / "report.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "safetensors"}
    assert {"model.safetensors", "report.md", "weights.svg"} <= {
        path.name for path in (tmp_path / "safetensors").iterdir()
    }


@pytest.mark.usefixtures("two_formats")
def test_one_that_was_made_and_failed_is_an_error(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(codes_file, "load_codes", lambda *_: None)  # random weights instead
    assert cli.main(["export", "--all", str(model_file), "--out", str(tmp_path), *FLAGS]) == 1
    assert "failed: the loaded model's outputs differ" in capsys.readouterr().out


@pytest.mark.usefixtures("two_formats")
def test_no_format_at_all_is_an_error(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.delitem(FORMATS, "safetensors")
    assert cli.main(["export", "--all", str(model_file), "--out", str(tmp_path), *FLAGS]) == 1
    assert "no format was made; torchao: front.layer1" in capsys.readouterr().err


def test_what_cannot_be_used_is_said(exported: Path, tmp_path: Path, capsys: Any) -> None:
    sound, colours = tmp_path / "sound.wav", tmp_path / "colours.npy"
    write_wave(sound, bytes(3200), rate=16000)
    np.save(colours, np.zeros((8, 9, 3), dtype=np.uint8))
    for words, code, said in (
        (["predict", str(tmp_path), "x.png"], 1, "is not a file; give the .onnx file"),
        (["predict", str(exported), str(tmp_path / "none.png")], 1, "is not an image"),
        (["predict", str(exported), str(sound)], 1, "is not an image"),
        (["predict", str(exported), str(colours)], 1, "[8, 9, 3] of 3 channels, and the model takes 1; give"),
        (["predict", str(exported / "report.json"), "x.png"], 1, "ONNX Runtime cannot load"),
        (["export", str(tmp_path), "--out", str(tmp_path / "o"), *FLAGS], 1, "holds no round"),
        (
            ["export", str(tmp_path), "--out", str(tmp_path / "o"), *FLAGS, "--disable-quant"],
            2,
            "quant.enabled",
        ),
    ):
        assert cli.main(words) == code, words
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(("task", "why"), [("ppo", "no held-out samples"), ("dcgan", "several phases")])
@pytest.mark.parametrize("flag", ["--quant-enabled", "--disable-quant"])
def test_a_task_that_no_file_can_hold_is_refused_at_once(
    task: str, why: str, flag: str, tmp_path: Path, capsys: Any
) -> None:
    words = ["--out", str(tmp_path / "out"), "--config-path", f"configs/{task}.yaml", flag]
    assert cli.main(["export", str(tmp_path), *words]) == 1
    said = capsys.readouterr().err
    assert why in said
    assert "distqat checkpoint assemble" in said


def write_wave(path: Path, samples: bytes, *, rate: int) -> None:
    """16-bit samples of one channel."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples)
