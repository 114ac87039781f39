"""docs/configuration.md, made of the schema: `python tests/docs/configuration_page.py` writes it anew."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distqat.config.authority import schema as config_schema
from distqat.options import Options
from distqat.tasks.image_augmentation import ImageOptions
from distqat.tasks.image_gen import GanOptions
from distqat.tasks.node_pred import GraphOptions
from distqat.tasks.rl import PPOOptions
from distqat.tasks.speech import SpeechOptions
from distqat.tasks.text_options import TextOptions

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
COMMAND = "python tests/docs/configuration_page.py"
Schema = Mapping[str, Any]

OPTIMIZER = {
    "type": "`adamw` reads the `adam_*` keys too.",
    "adam_lr": "Learning rate of `adam` and `adamw`.",
    "adam_weight_decay": "Weight decay of `adam` (added to the gradient) and `adamw` (shrinks the weights).",
    "adam_beta1": "Decay of the mean of gradients.",
    "adam_beta2": "Decay of the mean of their squares.",
    "adam_eps": "Added to the denominator.",
    "sgd_lr": "Learning rate of `sgd`.",
    "sgd_momentum": "Momentum of `sgd`.",
    "sgd_nesterov": "Nesterov's form of the momentum.",
    "sgd_weight_decay": "Weight decay of `sgd` (added to the gradient).",
}
MEANINGS = {
    **{f"diloco.inner_optim.{key}": meaning for key, meaning in OPTIMIZER.items()},
    **{f"diloco.outer_optim.{key}": meaning for key, meaning in OPTIMIZER.items()},
    "data.task_type": "What is learnt; `nlp` means `llm`.",
    "quant.enabled": "Train with quantizers; `--disable-quant` sets it to false.",
    "quant.weight.bits": "Bits of weights.",
    "quant.activation.bits": "Bits of activations.",
    "quant.activation.signed": "Whether codes may be negative.",
    "quant.overrides": "Other bits for some layers; a list of the keys below.",
    "quant.overrides[].match": "Pattern of layer names.",
    "quant.overrides[].weight": "`{bits: N}` for weights; null: as above.",
    "quant.overrides[].activation": "`{bits: N}` for activations; null: as above.",
}
"""Of keys that say nothing of themselves in the schema."""

TASK_OPTIONS: dict[str, type[Options]] = {
    "cv": ImageOptions,
    "llm": TextOptions,
    "speech": SpeechOptions,
    "image_gen": GanOptions,
    "node_pred": GraphOptions,
    "rl": PPOOptions,
}
CHAIN_KEYS = {  # of the constructors' own: default, meaning
    "cut": (
        "balanced",
        "The first block of every stage but the first, the same list in all entries: `[layer2.1, layer3.6]`; "
        "of `mlp`: `[layer3, fc]`.",
    ),
    "width": (
        "`1.0`",
        "ResNets: multiplies all channels. Images of at most 64 pixels get a stem of one 3 x 3 convolution, "
        "larger ones 7 x 7 with stride 2 and max-pooling.",
    ),
    "hidden": ("`128`", "`mlp`: width of its hidden layers."),
    "depth": ("`2`", "`mlp`: number of its hidden layers."),
    "in_features": ("from `data`", "`mlp`: numbers per sample, if the sample is not an image."),
    "dropout": ("`0.0`", "`mlp`: share of hidden values that are dropped."),
}
CHAIN = """\
### Keys of `resnet18`, `resnet50`, `resnet101` and `mlp`

Stages: `full`; `front` and `back`; `head`, any number of bodies (`body`, or `body1`, `body2`, ...) and
`tail`. A stage knows how many entries its model has and which of them it is. By default a model is cut where
multiply-accumulates are balanced, also inside a layer of blocks. `num_channels` and `img_size` come from
`data`.

| key | default | meaning |
| --- | --- | --- |
"""
HEAD = f"""\
# Configuration

A run is configured by one YAML file and by flags. Every key is also a flag: `diloco.inner_steps` is
`--diloco-inner-steps`. A `bool` also has a `--no-` form, `null` means "not set", and lists are separated by
commas. A flag wins over the file. An unknown key or value is refused with file, line and the nearest known
name, and exit code 2.

`distqat config PATH [flags]` prints the values that a run would have, and `distqat config --schema` prints
JSON Schema. This page is written by `{COMMAND}`, and a test compares it with the schema.

## Paths

Paths that are read (`data.dataset_name`, `data.tokenizer`, `plugins`, `pretrained` of a stage, `start_from`,
`quant.teacher`) are relative to the working directory, as on the command line. If nothing is there, they are
looked for in the folder of the configuration file. A path that exists in both is refused. A message about a
path names every place that was looked at. Paths that are written (`log_dir`, `param_mirror.checkpoint_dir`,
`store_ip_addresses_path`) are relative to the working directory
([decision 28](decisions/0028-where-paths-count-from.md)).

## Who decides a key

In a run over several machines, each machine has a configuration. The column *decided by* says whose value
counts:

- **client**: the value of the client counts, for the whole run. Servers are told it with their slot. If a
  server was given another value itself, its log names the key (and its terminal, if it was a flag). A client
  that is started again with another value logs `changed since the last start`, and servers that have kept
  running adopt it. A server may limit `diloco.batch_size_per_step` for itself, by the flag: trainers then
  send it no more than that.
- **group**: the client and all servers of a stage must have the same value. A server that differs is refused,
  and the key is named. A server with another text of a plugin is refused too (`code.FILE`). Of an outer
  optimizer only the keys that it reads count.
- **own**: each process has its own value.

`distqat config --schema` contains the same (`decided_by`).
"""


def sections(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Every section with its path, the whole first; items of a list are a section too."""
    definitions: Schema = schema.get("$defs", {})

    def walk(path: str, section: Schema) -> Iterator[tuple[str, Schema]]:
        yield path, section
        for name, raw in section["properties"].items():
            below = f"{path}.{name}" if path else name
            inner = section_of(raw)
            if inner is not None:
                yield from walk(below, inner)
            elif "items" in raw and section_of(raw["items"]) is not None:
                yield from walk(f"{below}[]", section_of(raw["items"]) or {})

    def section_of(raw: Schema) -> Schema | None:
        reference = raw.get("$ref")
        return None if reference is None else definitions[reference.rpartition("/")[2]]

    return walk("", schema)


def leaves(section: Schema) -> Iterator[tuple[str, Schema]]:
    """The keys of a section that hold values of their own."""
    return ((name, raw) for name, raw in section["properties"].items() if "$ref" not in raw)


def type_of(raw: Schema) -> str:
    """`int, 1 to 1024`, `text or null`, `fp16-mixed, bf16, fp32`."""
    if "enum" in raw:
        return ", ".join(f"`{name}`" for name in raw["enum"])
    if "const" in raw:
        return f"`{raw['const']}`"
    if "anyOf" in raw:
        return " or ".join(type_of(each) for each in raw["anyOf"])
    if "$ref" in raw:
        return "section"
    names = {
        "integer": "int",
        "number": "float",
        "string": "text",
        "object": "mapping",
        "boolean": "bool",
        "null": "null",
    }
    if raw.get("type") == "array":
        inside = type_of(raw["items"])
        return "list of sections" if inside == "section" else f"list of {inside}s"
    return ", ".join([names[raw["type"]], *filter(None, [bounds(raw)])])


def bounds(raw: Schema) -> str:
    """`1 to 1024`, `above 0`, `at least 1`."""
    least, most = raw.get("minimum"), raw.get("maximum")
    above, below = raw.get("exclusiveMinimum"), raw.get("exclusiveMaximum")
    below = None if below is not None and below > 2**53 else below
    if least is not None and most is not None:
        return f"{least} to {most}"
    words = [("at least", least), ("above", above), ("at most", most), ("below", below)]
    return ", ".join(f"{word} {_plain(limit)}" for word, limit in words if limit is not None)


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def default_of(path: str, name: str, raw: Schema, section: Schema) -> str:
    if name in section.get("required", ()):
        return "required"
    if path == "model_pipeline.pipeline":
        return "`resnet18.front`, `resnet18.back`"
    return f"`{json.dumps(raw.get('default', []))}`"


def meaning_of(path: str, raw: Schema) -> str:
    text = " ".join(str(raw.get("description") or MEANINGS.get(path, "")).split())
    return text if not text or text[-1] in ".)" else f"{text}."


def table(path: str, section: Schema) -> str:
    """The keys of a section, a row each; empty where it has none of its own."""
    decided = any("decided_by" in raw for _, raw in leaves(section))
    rows = ["| key | type | default | decided by | meaning |", "| --- | --- | --- | --- | --- |"]
    if not decided:  # of items of a list, and of tasks: as the key that they are in
        rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, raw in leaves(section):
        full = f"{path}.{name}" if path else name
        cells = [f"`{name}`", type_of(raw), default_of(full, name, raw, section), meaning_of(full, raw)]
        if decided:
            cells.insert(3, raw["decided_by"])
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) if len(rows) > 2 else ""


def page() -> str:
    """The whole page."""
    schema = config_schema()
    parts = [HEAD]
    for path, section in sections(schema):
        title = f"`{path}`" if path else "The run"
        about = "" if not path else " ".join(str(section.get("description", "")).split())
        parts.append("\n\n".join(filter(None, [f"## {title}", about, table(path, section)])))
        if path == "data":
            for task, kind in TASK_OPTIONS.items():
                title = f"### `data.options` of task `{task}`"
                parts.append(f"{title}\n\n{table(f'data.options.{task}', kind.model_json_schema())}")
        if path == "model_pipeline.pipeline[]":
            rows = (f"| `{key}` | {value} | {about} |" for key, (value, about) in CHAIN_KEYS.items())
            parts.append(CHAIN + "\n".join(rows))
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
