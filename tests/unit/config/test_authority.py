"""Every key of the configuration has one who decides it, and that is whose value counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from distqat.config import (
    Config,
    agreement_digest,
    authority_of,
    keys_of,
    load_config,
    run_settings,
    with_run_settings,
)
from distqat.config.authority import AUTHORITY, schema, value_at
from distqat.config.fields import ConfigField, config_fields
from distqat.errors import ConfigError, ProtocolMismatch

FILE = "configs/mlp.yaml"
KEYS = [field.path for field in config_fields()]
OTHER: dict[str, Any] = {
    "experiment_prefix": "another",
    "plugins": ["json"],  # a module that can be imported
    "device": "cuda:1",
    "initial_peers": ["/ip4/192.0.2.1/tcp/1/p2p/Qm"],
    "host_maddrs": ["/ip4/192.0.2.1/tcp/1"],
    "announce_maddrs": ["/ip4/192.0.2.1/tcp/1"],
    "public_ip": "192.0.2.1",
    "data.task_type": "image_gen",
    "data.options": {"augment": "shift"},
    "model_pipeline.pipeline": [
        {"model_name": f"mlp.{s}", "num_classes": 10, "hidden": 8} for s in ("front", "back")
    ],
    "quant.weight.method": "minmax",
    "quant.weight.group": 64,
    "quant.activation.method": "minmax",
    "quant.activation.signed": True,
    "quant.skip": ["fc"],
    "quant.overrides": [{"match": "fc", "weight": {"bits": 4}}],
}
"""Another value of keys of which not every text or number will do."""


def guesses(field: ConfigField, value: Any) -> Iterator[Any]:
    if field.path in OTHER:
        yield OTHER[field.path]
    elif field.is_bool:
        yield not value
    elif field.choices:
        yield from (choice for choice in field.choices if choice != value)
    elif field.is_number:
        yield from ((value or 0) + 1, (value or 0) / 2, (value or 0) + 0.25)
    else:
        yield "another"


def changed(path: str, **also: Any) -> Config:
    """The shipped configuration with another value at `path`."""
    (field,) = (field for field in config_fields() if field.path == path)
    value = value_at(load_config(FILE).model_dump(mode="json"), path)
    for guess in guesses(field, value):
        try:
            config = load_config(FILE, {path: guess, **also})
        except ConfigError:
            continue
        if value_at(config.model_dump(mode="json"), path) != value:
            return config
    raise AssertionError(f"no other value of {path}; name one in OTHER")


def test_every_key_is_decided_by_somebody_and_no_entry_is_left_over() -> None:
    assert sorted(KEYS) == sorted(
        path for authority in ("client", "group", "own") for path in keys_of(authority)
    )
    for entry in AUTHORITY:
        assert any(path == entry or path.startswith(f"{entry}.") for path in KEYS), entry
    with pytest.raises(KeyError, match="who decides this key"):
        authority_of("a_new_key")


@pytest.mark.parametrize("path", KEYS)
def test_the_clients_value_is_what_a_server_uses_and_only_where_the_client_decides(path: str) -> None:
    """What is told survives the wire; everything else of the server's own configuration stays."""
    server, client = load_config(FILE), changed(path)
    told = json.loads(json.dumps(run_settings(client)))
    used = with_run_settings(server, told)
    source = client if authority_of(path) == "client" else server
    assert value_at(used.model_dump(), path) == value_at(source.model_dump(), path)
    assert {
        key for key in KEYS if value_at(used.model_dump(), key) != value_at(server.model_dump(), key)
    } <= {path}
    assert used.model_fields_set >= server.model_fields_set


@pytest.mark.parametrize("path", KEYS)
def test_what_a_group_must_have_in_common_is_what_is_refused(path: str) -> None:
    also = {}
    if path.startswith("diloco.outer_optim.adam"):
        also = {"diloco.outer_optim.type": "adamw"}  # whose keys count then
    here = {path: "here"} if path == "quant.teacher" else {}  # whether there is one is agreed on
    base, other = load_config(FILE, {**also, **here}), changed(path, **also)
    differs = agreement_digest(base, "front") != agreement_digest(other, "front")
    assert differs == (authority_of(path) == "group")


def test_a_server_that_bounds_nothing_has_the_batch_size_of_the_client() -> None:
    client = load_config(FILE, {"diloco.batch_size_per_step": 64})
    used = with_run_settings(load_config(FILE), run_settings(client))
    assert used.diloco.batch_size_per_step == 64


def test_a_value_that_no_client_may_have_is_refused_by_its_key() -> None:
    with pytest.raises(
        ProtocolMismatch, match=r"the client says diloco\.outer_steps: .*greater than or equal"
    ):
        with_run_settings(load_config(FILE), {"diloco.outer_steps": 0})


def test_what_a_later_release_tells_besides_is_not_taken() -> None:
    told = {**run_settings(load_config(FILE)), "diloco.unheard_of": 1, "seed": 9, "log_dir": "/etc"}
    assert with_run_settings(load_config(FILE), told) == load_config(FILE)


def test_the_schema_says_who_decides_each_key() -> None:
    made = schema()
    assert made["properties"]["seed"]["decided_by"] == "group"
    assert made["$defs"]["DilocoOptions"]["properties"]["outer_steps"]["decided_by"] == "client"
    assert made["properties"]["public_ip"]["decided_by"] == "own"
    assert json.dumps(made).count('"decided_by"') == len(KEYS)
