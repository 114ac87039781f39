"""How a causal language model of transformers is made: its blocks, and what runs before and behind them.

Found by a pass over the model on the meta device, so it takes no memory and no arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from distqat.errors import ModelError
from distqat.models.stand_ins import AbsentBlock, AbsentModule

FAILURES = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)
"""What a family's own code raises over a tensor where it expects a tuple, or the other way round."""


@dataclass(frozen=True)
class ModelOutline:
    """Where the blocks of a model are, and the names of the modules that run before and behind them."""

    path: str
    before: tuple[str, ...]
    behind: tuple[str, ...]
    returns: int
    """What a block returns: 0, the hidden states; else the length of a tuple that begins with them."""


def outline(model: nn.Module) -> ModelOutline:
    """Of a model on the meta device. Raises ModelError for a family whose parts cannot be told apart."""
    config: Any = model.config
    path = block_path(model, int(config.num_hidden_layers))
    _check_own_weights(model, path)
    shared = getattr(config, "num_kv_shared_layers", 0)
    if shared:
        raise ModelError(
            f"{type(model).__name__} cannot be cut into stages: its last {shared} blocks read keys and "
            "values of earlier ones; train it as hf.full"
        )
    with _without_router_logits(config):
        before, behind, returns = _order(model, path)
        found = ModelOutline(path, tuple(before), tuple(behind), returns)
        _check_stages(model, found)
    return found


@contextmanager
def _without_router_logits(config: Any) -> Iterator[None]:
    """Blocks that do not run record none, and transformers fails over the loss of none."""
    records = getattr(config, "output_router_logits", False)
    if records:
        config.output_router_logits = False
    try:
        yield
    finally:
        if records:
            config.output_router_logits = records


def block_path(model: nn.Module, count: int) -> str:
    """Where the list of `count` blocks is. Raises ModelError when there is none, or more than one."""
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and _outermost(model, name)
    ]
    if len(found) != 1:
        raise ModelError(
            f"{type(model).__name__} has {len(found)} lists of {count} blocks "
            f"({', '.join(found) or 'none'}); it cannot be cut into stages, train it as hf.full"
        )
    return str(found[0])


def _check_own_weights(model: nn.Module, path: str) -> None:
    """ModelError where two blocks have a weight in common: it cannot be in two stages."""
    blocks: Any = model.get_submodule(path)
    owner: dict[int, int] = {}
    for number, block in enumerate(blocks):
        for name, parameter in block.named_parameters():
            if owner.setdefault(id(parameter), number) != number:
                raise ModelError(
                    f"{type(model).__name__} cannot be cut into stages: blocks {owner[id(parameter)]} and "
                    f"{number} share {name}; train it as hf.full"
                )


def _outermost(model: nn.Module, name: str) -> bool:
    parents = name.split(".")[:-1]
    return not any(
        isinstance(model.get_submodule(".".join(parents[:depth])), nn.ModuleList)
        for depth in range(1, len(parents) + 1)
    )


class _SayYes(TorchFunctionMode):
    """On the meta device no value is known: `if mask.all()` goes on as if it held.

    `padding in input_ids`, with which some families warn, does not hold.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.__bool__, torch.Tensor.__contains__) and args[0].is_meta:
            return func is torch.Tensor.__bool__
        return func(*args, **(kwargs or {}))


def _order(model: nn.Module, path: str) -> tuple[list[str], list[str], int]:
    """Names of the modules with parameters (and dropouts) that run before, and behind, the blocks.

    And in which form blocks return the hidden states.
    """
    outside = dict(_outside(model, path))
    handles = []
    watch = _Watch(model)
    for name, module in outside.items():
        handles.append(module.register_forward_hook(lambda *_, n=name: watch.runs(n)))
    was_training = model.training
    try:
        returns = _run_without_blocks(model.eval(), path, watch)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    ran = watch.ran
    odd = [n for n, m in outside.items() if _trains(m) and len(ran.get(n, set()) - {"among"}) != 1]
    if odd or any(p is not None for p in model.parameters(recurse=False)):
        watch.refuse(
            f"{', '.join(odd) or 'a parameter of its own'} belongs neither before nor behind the blocks"
        )
    before, behind = ([n for n in ran if ran[n] == {phase}] for phase in ("before", "behind"))
    return before, behind, returns


def _run_without_blocks(model: nn.Module, path: str, watch: _Watch) -> int:
    """A pass on the meta device whose blocks only hand on what they get: a mixture of experts needs values.

    Blocks return the hidden states, or in some families a tuple that begins with them; which form passes is
    returned.
    """
    failures: list[Exception] = []
    blocks: Any = model.get_submodule(path)
    own = list(blocks)
    for returns in (0, 3, 2):
        watch.start(len(own))
        for number, block in enumerate(own):
            blocks[number] = _Watched(block, returns, number, watch)
        try:
            with torch.device("meta"), torch.enable_grad(), _SayYes():
                model(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=False)
        except ModelError:
            raise
        except FAILURES as error:
            failures.append(error)
            continue
        finally:
            for number, block in enumerate(own):
                blocks[number] = block
        watch.check_order()
        return returns
    return watch.refuse(f"its pass without blocks fails ({'; '.join(map(str, failures))})")


def _check_stages(model: nn.Module, parts: ModelOutline) -> None:
    """Pass what a first and what a later stage has, blocks aside: some families ask for what is gone."""
    width = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]
    tokens, hidden = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, width)
    for gone, given in ((parts.behind, {"input_ids": tokens}), (parts.before, {"inputs_embeds": hidden})):
        replaced = {name: model.get_submodule(name) for name in gone}
        blocks: Any = model.get_submodule(parts.path)
        own = list(blocks)
        for name, module in replaced.items():
            model.set_submodule(name, AbsentModule(module))
        for number, block in enumerate(own):
            blocks[number] = AbsentBlock(block, parts.returns)
        try:
            with torch.device("meta"), torch.no_grad(), _SayYes():
                model(**{name: tensor.to("meta") for name, tensor in given.items()}, use_cache=False)
        except FAILURES as error:
            some = ", ".join(gone[:2]) + (", ..." if len(gone) > 2 else "")
            _Watch(model).refuse(f"a stage without {some} fails ({type(error).__name__}: {error})")
        finally:
            for number, block in enumerate(own):
                blocks[number] = block
            for name, module in reversed(replaced.items()):  # inner ones came first
                model.set_submodule(name, module)


class _Watch:
    """What happens in a pass whose blocks compute nothing."""

    def __init__(self, model: nn.Module) -> None:
        self.ran: dict[str, set[str]] = {}  # when the modules around the blocks ran
        self._model: Any = model
        self._called: list[int] = []

    def start(self, count: int) -> None:
        """A new pass through so many blocks."""
        self.ran.clear()
        self._called.clear()
        self._count = count

    def runs(self, name: str) -> None:
        """A module around the blocks has run."""
        number = len(self._called)
        phase = "before" if not number else "behind" if self._called[-1] == self._count - 1 else "among"
        self.ran.setdefault(name, set()).add(phase)

    def enters(self, number: int, hidden: Any, given: Mapping[str, Any]) -> None:
        """A block is called. Raises ModelError for what a cut cannot hand on."""
        self._called.append(number)
        width = (1, 2, int(self._model.config.hidden_size))
        if isinstance(hidden, Tensor) and tuple(hidden.shape) != width:
            if number:  # what the block before returned is not what the family expects
                raise ValueError(f"hidden states {list(hidden.shape)}")
            self.refuse(f"its first block takes {list(hidden.shape)}, where hidden states are {list(width)}")
        for name, value in given.items():
            if _holds(value, lambda each: isinstance(each, Tensor) and each.requires_grad):
                self.refuse(
                    f"besides the hidden states its blocks read {name}, made of trained weights before them"
                )
            if _holds(value, lambda each: each is _BESIDE):
                self.refuse(f"besides the hidden states its blocks read {name}, made by the block before")

    def check_order(self) -> None:
        """ModelError where blocks do not run once each, in their order: a cut is passed once."""
        if self._called != list(range(self._count)):
            self.refuse(f"its {self._count} blocks run as {', '.join(map(str, self._called))}")

    def refuse(self, why: str) -> NoReturn:
        name = type(self._model).__name__
        raise ModelError(f"{name} cannot be cut into stages: {why}; train it as hf.full")


_BESIDE = object()  # what blocks return beside the hidden states


class _Watched(AbsentBlock):
    """Stands in for a block while an outline is made."""

    def __init__(self, block: nn.Module, returns: int, number: int, watch: _Watch) -> None:
        super().__init__(block, returns)
        self._number, self._watch = number, watch
        self._beside = None if self._beside is None else [_BESIDE] * len(self._beside)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = {**{f"argument {place}": value for place, value in enumerate(args, 1)}, **kwargs}
        hidden = given.pop("argument 1" if args else "hidden_states")
        self._watch.enters(self._number, hidden, given)
        return super().forward(*args, **kwargs)


def _holds(value: Any, sought: Callable[[Any], bool]) -> bool:
    """Whether something in a block's argument is what is sought."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return any(_holds(item, sought) for item in value)
    return sought(value)


def _outside(model: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules that hold parameters themselves, and dropouts, except those within blocks."""
    for name, module in model.named_modules():
        inside = name == path or name.startswith(f"{path}.")
        if not inside and (_trains(module) or isinstance(module, nn.Dropout)):
            yield name, module


def _trains(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))
