"""Which stored tensors make up the tensors of a stage: transformers' own mapping, for the stage's part alone.

A release names and shapes its tensors as they were when it was published: three matrices per expert where
the model now has two for all experts, one matrix where it has three. What to rename, merge, split or turn
over is in transformers' `conversion_mapping`, which its `from_pretrained` applies to whole models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from distqat.errors import ModelError

_FAILURES = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
_TOWER = re.compile(r"^(?:model\.)?language_model\.(?:model\.)?")  # of a model that sees or hears, too


@dataclass
class TensorRecipe:
    """How `targets`, tensors of a model, are made: of one stored tensor as it is, or by a conversion."""

    targets: tuple[str, ...]
    sources: dict[str, list[str]] = field(default_factory=dict)  # by pattern of the conversion
    conversion: Any = None

    @property
    def stored(self) -> list[str]:
        """Names of all stored tensors that it takes."""
        return [name for names in self.sources.values() for name in names]

    def make(self, read: Callable[[str], Tensor], model: Any) -> dict[str, Tensor]:
        """The targets by name. Raises ModelError where the conversion fails over what is stored."""
        if self.conversion is None:
            return {self.targets[0]: read(self.stored[0])}
        conversion, first = deepcopy(self.conversion), self.targets[0]
        for pattern, names in self.sources.items():
            for name in names:
                conversion.add_tensor(first, name, pattern, lambda name=name: read(name))
        try:
            made = conversion.convert(first, model=model, config=model.config)
        except _FAILURES as error:
            some = ", ".join(self.stored[:3])
            raise ModelError(
                f"{first!r} cannot be made of {some}, ... ({type(error).__name__}: {error}); are all files "
                "of the weights there, and does the config belong to them?"
            ) from error
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def recipes(model: Any, known: Collection[str], stored: Iterable[str], prefix: str) -> list[TensorRecipe]:
    """Recipes for those of the `known` names, tensors of a stage, that the `stored` ones make up.

    `model` is transformers' (cut or whole), or None where names are as they are; `prefix` is what a file of
    the bare model leaves out (`transformer.` of GPT-2).
    """
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = _transforms(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    wanted = dict.fromkeys(known, True)

    def place(name: str) -> tuple[str, str | None] | None:
        """The name in the model, and the pattern of the conversion that leads there."""
        for spelled in dict.fromkeys((name, _TOWER.sub("model.", name))):
            for ways in ((renamings, converters), ([], [])):
                found: tuple[str, str | None] = rename_source_key(spelled, *ways, prefix, wanted)
                if found[0] in wanted:
                    return found
        return None

    found: dict[str, TensorRecipe] = {}
    for name in sorted(stored, key=_natural):
        placed = place(name)
        if placed is None:  # of another stage, or a scale beside codes
            continue
        key, pattern = placed
        conversion = None if pattern is None else by_pattern[pattern]
        recipe = found.setdefault(key, TensorRecipe(_targets(key, conversion), conversion=conversion))
        recipe.sources.setdefault(pattern or name, []).append(name)
    return list(found.values())


def _transforms(model: Any) -> list[Any]:
    if model is None:
        return []
    from transformers.conversion_mapping import get_model_conversion_mapping

    return list(get_model_conversion_mapping(model))


def _targets(key: str, conversion: Any) -> tuple[str, ...]:
    """All names that come of it; a key holds the first of them."""
    if conversion is None:
        return (key,)
    first, *others = conversion.target_patterns
    return (key, *(key.replace(first, other) for other in others))


def _natural(name: str) -> list[tuple[int, str]]:
    """`experts.2` before `experts.10`: a conversion stacks them in this order."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
