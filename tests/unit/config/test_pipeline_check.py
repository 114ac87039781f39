"""What a pipeline names is looked at before any process is started, and without torch where it can be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.plugin_scene import forgotten_plugins

from distqat.config import check_folders, load_config, pipeline_check
from distqat.config.schema import Config
from distqat.errors import ConfigError
from distqat.models import MODEL_TYPES

PIPELINE = "model_pipeline.pipeline"


def test_the_shipped_stages_are_those_that_the_models_register() -> None:
    shipped = {f"{model}.{stage}" for model, names in pipeline_check.SHIPPED.items() for stage in names}
    ours = {name for name, made in MODEL_TYPES.items() if "plugin" not in getattr(made, "__module__", "")}
    assert shipped == ours


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "resnet18.bakc",
            ["did you mean 'resnet18.back'?", "resnet18 has the stages back, body, front, full"],
        ),
        ("renset18.front", ["did you mean 'resnet18.front'?", "known models: dcgan, distilgpt2"]),
        ("quite.another", ["unknown model stage 'quite.another'; known models", "--plugin path/to/file.py"]),
    ],
)
def test_a_stage_that_does_not_exist_is_named_with_its_line(
    tmp_path: Path, name: str, said: list[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"seed: 1\nmodel_pipeline:\n  pipeline:\n  - model_name: mlp.head\n  - model_name: {name}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    text = str(caught.value)
    assert text.startswith(f"{path}:5: model_pipeline.pipeline.1.model_name: unknown model stage {name!r}")
    assert all(part in text for part in said)


def test_one_given_on_the_command_line_names_the_flag() -> None:
    with pytest.raises(
        ConfigError, match=r"^--model-pipeline-pipeline: .*'mlp.bakc'; did you mean 'mlp.back'"
    ):
        load_config(None, {PIPELINE: [{"model_name": "mlp.bakc"}]})


def test_a_numbered_stage_and_one_of_a_plugin_are_known(tmp_path: Path) -> None:
    load_config(None, {PIPELINE: [{"model_name": f"mlp.{name}"} for name in ("head", "body2", "tail")]})
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nfrom distqat.models.registry import MODEL_TYPES\n"
        "MODEL_TYPES['mine.all'] = nn.Identity\n"
    )
    with forgotten_plugins():
        load_config(None, {PIPELINE: [{"model_name": "mine.all"}], "plugins": [str(tmp_path / "mine.py")]})
    with pytest.raises(ConfigError, match=r"unknown model stage 'mine.all'"):
        load_config(None, {PIPELINE: [{"model_name": "mine.all"}]})


def test_shipped_names_are_known_without_torch() -> None:
    words = "import sys; from distqat.config import load_config; load_config('resnet18'); "
    words += "print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", words], capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout.strip() == "False"


def test_a_folder_that_is_not_there_names_what_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mymodel").mkdir()
    (tmp_path / "afile").write_text("")
    monkeypatch.chdir(tmp_path)

    def said(source: str) -> str:
        config = Config.model_validate(
            {"model_pipeline": {"pipeline": [{"model_name": "hf.full", "pretrained": source}]}}
        )
        try:
            check_folders(config)
        except ConfigError as error:
            return str(error)
        return ""

    wrong = f"hf.full: pretrained: './mymodl': there is no folder {tmp_path}/mymodl; did you mean 'mymodel'?"
    assert said("./mymodl") == wrong
    assert said(str(tmp_path / "x" / "y")).endswith(f"there is no folder {tmp_path}/x/y, nor one around it")
    assert said("./zzz").endswith(f"{tmp_path} holds the folders mymodel")
    assert said("./afile").endswith(
        f"{tmp_path}/afile is not a folder; give the folder that the file lies in"
    )
    assert said("./mymodel") == said("mymodel") == said("acme/name-on-the-hub") == ""
