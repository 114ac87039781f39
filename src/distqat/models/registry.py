"""The registry of stages: names to constructors, and the sample inputs that tell their shapes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from torch import Tensor, nn

from distqat.errors import DistqatError, ModelError, UnknownName
from distqat.failures import describe
from distqat.registration import enter

StageFactory: TypeAlias = "type[nn.Module] | Callable[..., nn.Module]"
SampleInput: TypeAlias = "Callable[..., Tensor | tuple[Tensor, ...] | dict[str, Tensor]]"
ModuleT = TypeVar("ModuleT", bound="type[nn.Module]")

MODEL_TYPES: dict[str, StageFactory] = {}
"""Every stage that can be built, as `model.stage`; entries may be added by hand."""

_SAMPLE_INPUTS: dict[str, SampleInput] = {}

CONTEXT_KEYS = frozenset(
    {"num_classes", "num_channels", "img_size", "sequence_length", "stage_index", "stage_count"}
)
"""Keys that describe the data, and which of how many stages of the model in this pipeline it is (from 0):
passed where the constructor accepts them, left out where it does not."""


def register_expert_class(name: str, sample_input: SampleInput) -> Callable[[ModuleT], ModuleT]:
    """Register a stage class under `name` with a callable that makes its input; returns the class.

    `sample_input` takes any of batch_size, hid_dim and the pipeline entry's own keys, by name, and returns
    a tensor, a tuple or a dict of tensors; only dtypes and shapes are looked at. The same class may be
    registered again. Raises ModelError when another class already has the name.
    """

    def register(stage_class: ModuleT) -> ModuleT:
        register_stage(name, stage_class, sample_input)
        return stage_class

    return register


def register_stage(name: str, factory: StageFactory, sample_input: SampleInput | None = None) -> None:
    """Put a class or a factory function into the registry. Raises ModelError when the name is taken."""
    enter(MODEL_TYPES, name, factory, kind="stage", error=ModelError)
    if sample_input is not None:
        _SAMPLE_INPUTS[name] = sample_input


def build_stage(model_name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """Build one stage, on the default device, with the current random state.

    `kwargs` are the pipeline entry's own keys and the CONTEXT_KEYS. Raises UnknownName for a stage that
    nobody registered, ModelError for a key that its constructor does not accept and for whatever the
    constructor raises.
    """
    name, number = _entry(model_name)
    factory = MODEL_TYPES[name]
    accepted = _accepted(model_name, factory, {**_numbered(factory, number), **kwargs})
    try:
        stage = factory(**accepted)
    except ModelError as error:
        raise ModelError(f"stage {model_name!r}: {error}") from error
    except DistqatError:
        raise
    except Exception as error:  # a constructor is user code: whatever it raises must name the stage
        given = ", ".join(f"{key}={value!r}" for key, value in accepted.items())
        raise ModelError(
            f"stage {model_name!r} cannot be built with ({given}): {describe(error)}; "
            f"change the keys of its entry in model_pipeline"
        ) from error
    if not isinstance(stage, nn.Module):
        raise ModelError(
            f"stage {model_name!r}: its constructor returned {type(stage).__name__}, not a Module"
        )
    return stage


def sample_input(model_name: str, batch_size: int, kwargs: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Named tensors of the shapes and dtypes that the stage takes (values mean nothing), or None if unknown.

    A name that the callable needs and `kwargs` lacks is taken from the constructor's default. Raises
    UnknownName, and ModelError when a name is found in neither.
    """
    name, number = _entry(model_name)
    factory = MODEL_TYPES[name]
    make = _SAMPLE_INPUTS.get(name)
    if make is None:
        return None
    available = {
        **_defaults(factory), **_numbered(factory, number), **kwargs, "batch_size": batch_size
    }  # fmt: skip
    parameters = inspect.signature(make).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return named_tensors(make(**available))
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in available]
    if missing:
        raise ModelError(
            f"sample input of stage {model_name!r} needs {', '.join(missing)}; "
            f"add {'it' if len(missing) == 1 else 'them'} to the stage's entry in model_pipeline"
        )
    return named_tensors(make(**{p.name: available[p.name] for p in parameters if p.name in available}))


def stages_of(model: str) -> list[str]:
    """Names of the registered stages of a model: `back`, `front`, `full` of `resnet18`, and so on."""
    return sorted(name.rpartition(".")[2] for name in MODEL_TYPES if name.rpartition(".")[0] == model)


def named_tensors(value: Tensor | Sequence[Tensor] | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a stage takes or returns, by name: a single tensor is "x", a tuple is "x", "x1", "x2", ..."""
    if isinstance(value, Tensor):
        return {"x": value}
    if isinstance(value, Mapping):
        return dict(value)
    return {f"x{index}" if index else "x": tensor for index, tensor in enumerate(value)}


def copies_of(stage: nn.Module) -> dict[str, str]:
    """Weights that another stage holds a copy of, to be kept tied: the common name to that in this stage."""
    copies: Mapping[str, str] = getattr(stage, "copies", {})
    return dict(copies)


def full_state_dict(stage_states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Assemble the `state_dict` of the whole model from those of its stages, in stage order.

    Raises ModelError when two stages hold the same name: such a model can only be kept stage by stage.
    """
    full: dict[str, Tensor] = {}
    for state in stage_states:
        twice = sorted(full.keys() & state.keys())
        if twice:
            raise ModelError(
                f"two stages hold {twice[0]!r} ({len(twice)} names in common); give the modules of each "
                f"stage names that no other stage uses"
            )
        full.update(state)
    return full


def _entry(model_name: str) -> tuple[str, int | None]:
    """The entry of a name, and the number that tells stages of one kind apart: 2 of `hf.body2`."""
    if model_name in MODEL_TYPES:
        return model_name, None
    name = model_name.rstrip("0123456789")
    if name == model_name or name not in MODEL_TYPES:
        raise UnknownName("model stage", model_name, MODEL_TYPES)
    return name, int(model_name[len(name) :])


def _numbered(factory: StageFactory, number: int | None) -> dict[str, int]:
    """The number behind a stage's name, under the names that its constructor knows."""
    if number is None:
        return {}
    return dict.fromkeys({"position", "stage_index"} & inspect.signature(factory).parameters.keys(), number)


def _accepted(model_name: str, factory: StageFactory, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(factory).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(kwargs)
    names = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for key in kwargs:
        if key not in names and key not in CONTEXT_KEYS:
            close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ";"
            raise ModelError(f"stage {model_name!r} does not take {key!r}{hint} it takes: {', '.join(names)}")
    return {key: value for key, value in kwargs.items() if key in names}


def _defaults(factory: StageFactory) -> dict[str, Any]:
    parameters = inspect.signature(factory).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}
