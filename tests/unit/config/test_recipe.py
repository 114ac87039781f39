"""The configuration that travels with a model gives the same model again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.plugin_scene import forgotten_plugins

from distqat.config import Config, differences, from_recipe, load_config, recipe
from distqat.config.load import shipped_configs
from distqat.config.recipe import OF_A_HOST
from distqat.errors import ConfigError


def of_the_run(config: Config) -> Config:
    return config.model_copy(update=dict.fromkeys((*OF_A_HOST, "plugins")))


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_one_comes_back(name: str) -> None:
    config = load_config(f"configs/{name}.yaml")
    told = json.loads(json.dumps(recipe(config)))
    again = from_recipe(told, "run.json", {})
    assert of_the_run(again) == of_the_run(config)
    assert differences(again, told) == []


def test_nothing_of_the_host_travels() -> None:
    told = json.dumps(recipe(load_config("configs/mlp.yaml", {"log_dir": "/home/me/logs", "device": "cuda"})))
    assert "/home/me" not in told
    assert "cuda" not in told


def test_flags_come_on_top() -> None:
    told = recipe(load_config("configs/mlp.yaml"))
    config = from_recipe(told, "run.json", {"data.img_size": 16})
    assert config.data.img_size == 16
    assert differences(config, told) == ["data.img_size 16, not 8"]
    with pytest.raises(ConfigError, match="--data-img-size"):
        from_recipe(told, "run.json", {"data.img_size": "large"})


def test_widths_are_part_of_it() -> None:
    narrow = {"model_pipeline.pipeline": [{"model_name": "mlp.full", "hidden": 24}]}
    config = from_recipe(recipe(load_config("configs/mlp_full.yaml", narrow)), "run.json", {})
    assert config.model_pipeline.pipeline[0].kwargs["hidden"] == 24
    assert differences(load_config("configs/mlp_full.yaml"), recipe(config)) == [
        "model_pipeline.pipeline.0.hidden None, not 24",
        "model_pipeline.pipeline.0.num_classes 10, not None",
    ]


def test_code_is_loaded_only_if_one_says_so(tmp_path: Path) -> None:
    """A checkpoint that somebody sends must not run what it names."""
    plugin = tmp_path / "code.py"
    plugin.write_text("import builtins\nbuiltins.code_of_a_checkpoint = True\n")
    told = {**recipe(load_config("configs/mlp.yaml")), "plugins": [str(plugin)]}
    import builtins

    with forgotten_plugins():
        with pytest.raises(ConfigError, match=f"code of its own, .* add --plugin {plugin}"):
            from_recipe(told, "checkpoints/x", {})
        assert not hasattr(builtins, "code_of_a_checkpoint")
        from_recipe(told, "checkpoints/x", {"plugins": [str(plugin)]})
    assert builtins.code_of_a_checkpoint
    del builtins.code_of_a_checkpoint
