"""Code of users, loaded before a configuration is looked at."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.plugin_scene import forgotten_plugins

from distqat.config import (
    ConfigParser,
    add_config_arguments,
    agreement,
    config_from_args,
    load_config,
    plugins,
    structure,
    to_argv,
)
from distqat.data.source import DATASETS
from distqat.errors import ConfigError
from distqat.models import MODEL_TYPES
from distqat.tasks import TASKS

MODEL = """
from torch import nn
from distqat.models.registry import register_stage
register_stage("tiny.whole", lambda width=2: nn.Linear(width, width))
"""
TASK = """
from distqat.tasks import register_task
@register_task("weighing")
def weighing(settings):
    raise NotImplementedError
"""
DATA = """
from distqat.data.source import register_dataset
@register_dataset("parcels")
def parcels(options, seed):
    raise NotImplementedError
"""


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    with forgotten_plugins():
        yield


def write(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(textwrap.dedent(text).strip("\n") for text in texts) + "\n")
    return path


def parsed(*words: str) -> Any:
    parser = ConfigParser()
    add_config_arguments(parser)
    return parser.parse_args(list(words))


def test_a_task_of_a_plugin_is_a_task_type(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown task type 'weighing'"):
        load_config(None, {"data.task_type": "weighing"})
    plugin = write(tmp_path / "mytask.py", TASK)
    config = load_config(None, {"data.task_type": "weighing", "plugins": [str(plugin)]})
    assert config.data.task_type == "weighing"
    assert config.plugins == [str(plugin)]


def test_paths_of_a_yaml_file_count_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "code" / "mytask.py", TASK)
    write(tmp_path / "run.yaml", "plugins: [code/mytask.py]", "data: {task_type: weighing}")
    monkeypatch.chdir("/")
    config = load_config(tmp_path / "run.yaml")
    assert config.plugins == [str(tmp_path / "code" / "mytask.py")]


def test_a_plugin_of_the_file_may_lie_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every path of a configuration; where both have one, none is taken in silence."""
    run = write(tmp_path / "configs" / "run.yaml", "plugins: [mytask.py]", "data: {task_type: weighing}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=f"looked for {tmp_path}/mytask.py and {tmp_path}/configs/mytask.py"
    ):
        load_config(run)
    here = write(tmp_path / "mytask.py", TASK)
    assert load_config(run).plugins == [str(here)]
    write(tmp_path / "configs" / "mytask.py", TASK)
    with pytest.raises(ConfigError, match=r"run\.yaml:1: plugins: 'mytask\.py' is there twice"):
        load_config(run)


def test_the_flag_adds_to_the_file_and_travels_to_other_roles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("model.py", MODEL), ("task.py", TASK), ("data.py", DATA)):
        write(tmp_path / name, text)
    run = write(tmp_path / "run.yaml", "plugins: [model.py]")
    monkeypatch.chdir(tmp_path)
    args = parsed(
        f"--config-path={run}", "--plugin=task.py", "--plugin", "data.py", "--data-task-type=weighing"
    )
    config = config_from_args(args)
    assert [Path(name).name for name in config.plugins] == ["model.py", "task.py", "data.py"]
    assert {"tiny.whole"} <= MODEL_TYPES.keys()
    assert {"parcels"} <= DATASETS.keys()
    monkeypatch.chdir("/")
    again = parsed(*to_argv(run, args.config_overrides))
    assert config_from_args(again) == config


def test_twice_is_once(tmp_path: Path) -> None:
    plugin = write(
        tmp_path / "counts.py", "import builtins", "builtins.loads = getattr(builtins, 'loads', 0) + 1"
    )
    link = tmp_path / "link.py"
    link.symlink_to(plugin)
    import builtins

    for _ in range(2):
        load_config(None, {"plugins": [str(plugin), str(plugin), str(link)]})
    assert builtins.loads == 1  # type: ignore[attr-defined]
    del builtins.loads  # type: ignore[attr-defined]


def test_a_package_and_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "mypackage" / "__init__.py", "from .model import width")
    write(tmp_path / "mypackage" / "model.py", MODEL, "width = 3")
    write(tmp_path / "plugin_of_a_test.py", TASK)
    monkeypatch.syspath_prepend(str(tmp_path))
    load_config(None, {"plugins": [f"{tmp_path}/mypackage", "plugin_of_a_test"]})
    assert "tiny.whole" in MODEL_TYPES
    assert "weighing" in TASKS


def install(site: Path, text: str) -> None:
    """A package `mine` with a plugin as its entry point, as pip would lay it out."""
    write(site / "plugin_of_a_test_installed.py", text)
    write(site / "mine-1.0.dist-info" / "METADATA", "Metadata-Version: 2.1", "Name: mine", "Version: 1.0")
    points = f"[{plugins.GROUP}]", "parcels = plugin_of_a_test_installed"
    write(site / "mine-1.0.dist-info" / "entry_points.txt", *points)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "_entry_points_loaded", False)
    return tmp_path


def test_an_installed_package_needs_no_flag(site: Path) -> None:
    install(site, DATA)
    load_config(None)
    assert "parcels" in DATASETS


def test_a_broken_installed_plugin_is_named_with_its_package(site: Path) -> None:
    install(site, "x = 1 / 0\n")
    with pytest.raises(
        ConfigError, match=r"'parcels' of the installed package 'mine': .*installed\.py:1: Zero"
    ):
        load_config(None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ny = x / 0\n", "2: ZeroDivisionError: division by zero"),
        ("x = 1\n\ndef f(:\n", "3: SyntaxError: invalid syntax"),
        ("import no_such_package_here\n", "1: ModuleNotFoundError: No module named 'no_such_package_here'"),
        ("import sys\nsys.exit()\n", "2: SystemExit: "),
        (TASK.replace("weighing", "cv"), r"2: task type 'cv' is already .*register .* under another name"),
        (
            DATA.replace("parcels", "digits"),
            r"2: data set 'digits' is already .*register .* under another name",
        ),
        (
            MODEL.replace("tiny.whole", "mlp.full"),
            r"3: stage 'mlp.full' is already .*register .* under another name",
        ),
        (
            "from distqat.models import MODEL_TYPES\nMODEL_TYPES['mlp.full'] = dict\n",
            " it replaces the model 'mlp.full'; register yours under another name",
        ),
    ],
    ids=["raises", "syntax", "import", "exit", "task", "data set", "model", "assigned"],
)
def test_what_a_plugin_does_wrong_is_said_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    plugin = write(tmp_path / "broken.py", text)
    run = write(tmp_path / "run.yaml", "seed: 1", "plugins: [broken.py]")
    before = dict(MODEL_TYPES), dict(TASKS), dict(DATASETS)
    with pytest.raises(ConfigError, match=rf"^{run}:2: plugins: {plugin}:{said}"):
        load_config(run)
    with pytest.raises(ConfigError, match=rf"^--plugin: {plugin}:{said}"):
        config_from_args(parsed("--config-path=", f"--plugin={plugin}"))
    assert before == (MODEL_TYPES, TASKS, DATASETS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./nothing.py", "nothing.py: no such file; a plugin is a .py file"),
        ("./", "has no __init__.py"),
        ("no_such_module_here", "no module 'no_such_module_here' can be imported; is its package installed"),
        ("no_such.module_here", "no module 'no_such.module_here' can be imported"),
        ("a b", "'a b' is not a plugin: expected a path to a .py file, or the name of a module"),
    ],
)
def test_a_plugin_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        config_from_args(parsed("--config-path=", f"--plugin={name}"))


def test_no_list_of_texts_is_left_to_the_schema(tmp_path: Path) -> None:
    run = write(tmp_path / "run.yaml", "plugins: {a: 1}")
    with pytest.raises(ConfigError, match=rf"{run}:1: plugins: should be a valid list"):
        load_config(run)


def test_replicas_agree_on_the_code_that_they_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(model: str, data: str) -> tuple[dict[str, Any], dict[str, Any]]:
        for registry in (MODEL_TYPES, DATASETS):
            for name in ("tiny.whole", "parcels"):
                registry.pop(name, None)
        monkeypatch.setattr(plugins, "_LOADED", {})
        for name in [name for name in sys.modules if name.startswith("distqat_plugin_")]:
            del sys.modules[name]
        write(tmp_path / "model.py", model)
        write(tmp_path / "data.py", data)
        run = write(
            tmp_path / "run.yaml",
            "plugins: [model.py, data.py]",
            "model_pipeline: {pipeline: [{model_name: tiny.whole}]}",
        )
        config = load_config(run)
        return agreement(config, "whole"), structure(config, "whole")

    (first, whole), (other_data, _) = of(MODEL, DATA), of(MODEL, DATA + "# other\n")
    (other_model, other_whole) = of(MODEL + "# other\n", DATA)
    assert first == other_data  # servers read no data
    assert {key for key in first if first[key] != other_model[key]} == {"code.model.py"}
    assert whole == other_whole  # a checkpoint does not depend on it
