"""How a causal language model of transformers is made: its blocks, and what runs before and behind them.

Found by a pass over the model on the meta device, so it takes no memory and no arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from distqat.errors import ModelError

FAILURES = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)
"""What a family's own code raises over a tensor where it expects a tuple, or the other way round."""


@dataclass(frozen=True)
class Outline:
    """Where the blocks of a model are, and the names of the modules that run before and behind them."""

    path: str
    before: tuple[str, ...]
    behind: tuple[str, ...]
    returns: int
    """What a block returns: 0, the hidden states; else the length of a tuple that begins with them."""


def in_form(hidden: Tensor, returns: int) -> Any:
    """Hidden states as a block of the family returns them."""
    return (hidden, *[None] * (returns - 1)) if returns else hidden


def outline(model: nn.Module) -> Outline:
    """Of a model on the meta device. Raises ModelError for a family whose parts cannot be told apart."""
    config: Any = model.config
    path = block_path(model, int(config.num_hidden_layers))
    _check_own_weights(model, path)
    before, behind, returns = _order(model, path)
    return Outline(path, tuple(before), tuple(behind), returns)


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
    ran: dict[str, set[str]] = {}
    now = ["before"]
    handles = []

    def passed(phase: str) -> Any:
        return lambda *_: now.__setitem__(0, phase)

    blocks: Any = model.get_submodule(path)
    handles.append(blocks[0].register_forward_pre_hook(passed("among")))
    handles.append(blocks[-1].register_forward_hook(passed("behind")))
    for name, module in _outside(model, path):
        handles.append(module.register_forward_hook(lambda *_, n=name: ran.setdefault(n, set()).add(now[0])))

    def start() -> None:
        ran.clear()
        now[0] = "before"

    config: Any = model.config
    was_training, records = model.training, getattr(config, "output_router_logits", False)
    try:
        if records:  # of blocks that do not run there are none
            config.output_router_logits = False
        returns = _run_without_blocks(model.eval(), list(blocks), start=start)
    finally:
        model.train(was_training)
        if records:
            config.output_router_logits = records
        for handle in handles:
            handle.remove()
    odd = [n for n, m in _outside(model, path) if _trains(m) and len(ran.get(n, set()) - {"among"}) != 1]
    if odd or any(p is not None for p in model.parameters(recurse=False)):
        raise ModelError(
            f"{type(model).__name__} cannot be cut into stages: {', '.join(odd) or 'a parameter of its own'} "
            "belongs neither before nor behind the blocks; train it as hf.full"
        )
    before, behind = ([n for n in ran if ran[n] == {phase}] for phase in ("before", "behind"))
    return before, behind, returns


def _run_without_blocks(model: nn.Module, blocks: list[nn.Module], start: Callable[[], None]) -> int:
    """A pass on the meta device whose blocks only hand on what they get: a mixture of experts needs values.

    Blocks return the hidden states, or in some families a tuple that begins with them; which form passes is
    returned.
    """
    failures: list[Exception] = []
    for returns in (0, 3, 2):
        start()
        called: list[int] = []
        for number, block in enumerate(blocks):
            block.forward = _Handing(model, number, called, returns)
        try:
            with torch.device("meta"), torch.enable_grad(), _SayYes():
                model(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=False)
            _check_calls(model, called, len(blocks))
            return returns
        except ModelError:
            raise
        except FAILURES as error:
            failures.append(error)
        finally:
            for block in blocks:
                del block.forward
    raise ModelError(
        f"{type(model).__name__} cannot be cut into stages, its pass without blocks fails "
        f"({'; '.join(map(str, failures))}); train it as hf.full"
    )


@dataclass
class _Handing:
    """Stands in for the forward pass of a block, and looks at what the block is given."""

    model: Any
    number: int
    called: list[int]
    returns: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.called.append(self.number)
        given = {f"argument {place}": value for place, value in enumerate(args, 1)}
        given |= kwargs
        hidden = given.pop("argument 1") if args else given.pop("hidden_states")
        width = (1, 2, int(self.model.config.hidden_size))
        if isinstance(hidden, Tensor) and tuple(hidden.shape) != width:
            if self.number:  # what the block before returned is not what the family expects
                raise ValueError(f"hidden states {list(hidden.shape)}")
            raise self._refusal(
                f"its first block takes {list(hidden.shape)}, where hidden states are {list(width)}"
            )
        learned = [name for name, value in given.items() if _learned(value)]
        if learned:
            raise self._refusal(
                f"besides the hidden states its blocks read {learned[0]}, made of trained weights before them"
            )
        return in_form(hidden, self.returns)

    def _refusal(self, why: str) -> ModelError:
        name = type(self.model).__name__
        return ModelError(f"{name} cannot be cut into stages: {why}; train it as hf.full")


def _check_calls(model: nn.Module, called: list[int], count: int) -> None:
    """ModelError where blocks do not run once each, in their order: a cut is passed once."""
    if called != list(range(count)):
        raise ModelError(
            f"{type(model).__name__} cannot be cut into stages: its {count} blocks run as "
            f"{', '.join(map(str, called))}; train it as hf.full"
        )


def _learned(value: Any) -> bool:
    """Whether a gradient would flow through a block's argument."""
    if isinstance(value, (tuple, list)):
        return any(_learned(item) for item in value)
    return isinstance(value, Tensor) and value.requires_grad


def _outside(model: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules that hold parameters themselves, and dropouts, except those within blocks."""
    for name, module in model.named_modules():
        inside = name == path or name.startswith(f"{path}.")
        if not inside and (_trains(module) or isinstance(module, nn.Dropout)):
            yield name, module


def _trains(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))
