"""Files, shipped configs, overrides, and the sentences for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from distqat.config import Config, load_config
from distqat.config.load import shipped_configs
from distqat.errors import ConfigError

REPOSITORY = Path(__file__).parents[3]


def _error(path: Path, text: str, overrides: dict[str, object] | None = None) -> str:
    file = path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    return str(caught.value).replace(f"{path}/", "")


@pytest.mark.parametrize("name", sorted(path.name for path in (REPOSITORY / "configs").glob("*.yaml")))
def test_every_shipped_config_loads(name: str) -> None:
    assert load_config(REPOSITORY / "configs" / name).model_pipeline.pipeline


def test_the_package_ships_what_the_repository_shows() -> None:
    shown = {path.stem: path.read_text() for path in (REPOSITORY / "configs").glob("*.yaml")}
    assert shipped_configs() == shown


@pytest.mark.parametrize("name", ["configs/mlp.yaml", "./configs/mlp.yaml", "mlp.yaml", "mlp"])
def test_a_shipped_config_is_found_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(name).experiment_prefix == "mlp"


def test_a_file_of_the_users_own_comes_before_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mlp.yaml").write_text("experiment_prefix: mine\n")
    assert load_config("configs/mlp.yaml").experiment_prefix == "mine"


def test_a_missing_file_names_the_nearest_shipped_one() -> None:
    with pytest.raises(
        ConfigError, match=r"resnet19.yaml: no such file; did you mean 'configs/resnet18.yaml'\?"
    ):
        load_config("configs/resnet19.yaml")


def test_no_path_means_the_defaults() -> None:
    assert load_config(None) == Config()


def test_an_unknown_key_names_line_path_and_the_nearest_key(tmp_path: Path) -> None:
    text = "seed: 1\ndiloco:\n  outer_steps: 3\n  inner_stepz: 4\n"
    assert _error(tmp_path, text) == "x.yaml:4: diloco.inner_stepz: unknown key; did you mean 'inner_steps'?"


def test_a_key_in_the_wrong_section_names_the_right_one(tmp_path: Path) -> None:
    said = _error(tmp_path, "inner_steps: 4\n")
    assert said == "x.yaml:1: inner_steps: unknown key; did you mean 'diloco.inner_steps'?"


def test_a_key_like_nothing_lists_the_known_ones(tmp_path: Path) -> None:
    said = _error(tmp_path, "data:\n  zzz: 4\n")
    assert said.startswith("x.yaml:2: data.zzz: unknown key; known: dataset_name, ")


def test_an_unknown_number_lists_the_known_ones(tmp_path: Path) -> None:
    said = _error(tmp_path, "quant:\n  weight: {group: 48}\n")
    assert said == "x.yaml:2: quant.weight.group: unknown value 48; known: 32, 64, 128"


def test_an_unknown_value_names_the_nearest(tmp_path: Path) -> None:
    said = _error(tmp_path, "data:\n  task_type: nlpp\n")
    assert said.startswith(
        "x.yaml:2: data.task_type: unknown task type 'nlpp'; did you mean 'nlp'? known: cv, "
    )


def test_problems_are_listed_in_the_order_of_the_file(tmp_path: Path) -> None:
    said = _error(tmp_path, "seed: -1\nmodel_pipeline:\n  pipeline:\n  - width: 1\ndevice: gpu\ndata:\n")
    assert [line.partition(": ")[0] for line in said.splitlines()] == [
        f"x.yaml:{line}" for line in (1, 4, 5, 6)
    ]
    assert "pipeline.0.model_name: missing" in said
    assert "data: expected a section of `key: value` lines, got nothing" in said


def test_an_unknown_key_inside_a_list_names_the_nearest(tmp_path: Path) -> None:
    said = _error(tmp_path, "quant:\n  overrides:\n  - match: a\n    weigth: {bits: 4}\n")
    assert said == "x.yaml:4: quant.overrides.0.weigth: unknown key; did you mean 'weight'?"


def test_a_bad_prefix_is_the_only_problem_named(tmp_path: Path) -> None:
    assert len(_error(tmp_path, "experiment_prefix: a b\n").splitlines()) == 1


def test_numbers_must_be_finite(tmp_path: Path) -> None:
    assert _error(tmp_path, "refresh_period: .inf\n").startswith("x.yaml:1: refresh_period: ")
    text = "model_pipeline:\n  pipeline:\n  - model_name: a.b\n    width: .nan\n"
    assert _error(tmp_path, text) == "x.yaml:4: model_pipeline.pipeline.0.width: must be a finite number"


def test_a_folder_or_bytes_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(
        ConfigError, match=r"bytes\.yaml:1: cannot be read: it is not UTF-8 text; save it as UTF-8"
    ):
        load_config(tmp_path / "bytes.yaml")
    (tmp_path / "latin.yaml").write_bytes("seed: 1\nexperiment_prefix: café\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml:2: cannot be read"):
        load_config(tmp_path / "latin.yaml")


def test_overrides_come_last_and_leave_the_rest(tmp_path: Path) -> None:
    config = load_config("configs/mlp.yaml", {"diloco.inner_steps": "7", "diloco": {"outer_steps": 9}})
    assert (config.diloco.inner_steps, config.diloco.outer_steps) == (7, 9)
    assert config.diloco.batch_size_per_step == load_config("configs/mlp.yaml").diloco.batch_size_per_step


def test_a_bad_override_is_named_by_its_flag(tmp_path: Path) -> None:
    said = _error(tmp_path, "seed: 1\n", {"diloco.inner_steps": "many"})
    assert said.startswith("--diloco-inner-steps: diloco.inner_steps: should be a valid integer")


def test_an_override_below_a_value_is_refused(tmp_path: Path) -> None:
    assert "has no keys" in _error(tmp_path, "seed: 1\n", {"seed.deeper": 1})


def test_data_that_are_in_two_places_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    for folder in (tmp_path, tmp_path / "configs"):
        (folder / "data").mkdir()
    run = tmp_path / "configs" / "run.yaml"
    run.write_text("seed: 1\ndata: {dataset_name: ./data}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"run\.yaml:2: data\.dataset_name: '\./data' is there twice"):
        load_config(run)
    assert load_config(run, {"data.dataset_name": str(tmp_path / "data")}).seed == 1
