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


def outline(model: nn.Module) -> Outline:
    """Of a model on the meta device. Raises ModelError for a family whose parts cannot be told apart."""
    config: Any = model.config
    path = block_path(model, int(config.num_hidden_layers))
    _check_own_weights(model, path)
    before, behind = _order(model, path)
    return Outline(path, tuple(before), tuple(behind))


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


def _order(model: nn.Module, path: str) -> tuple[list[str], list[str]]:
    """Names of the modules with parameters (and dropouts) that run before, and behind, the blocks."""
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
        _run_without_blocks(model.eval(), list(blocks), start=start)
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
    return [n for n in ran if ran[n] == {"before"}], [n for n in ran if ran[n] == {"behind"}]


def _run_without_blocks(model: nn.Module, blocks: list[nn.Module], start: Callable[[], None]) -> None:
    """A pass on the meta device whose blocks only hand on what they get: a mixture of experts needs values.

    Blocks return the hidden states, or in some families a tuple that begins with them; one of the two passes.
    """

    def alone(*args: Any, **kwargs: Any) -> Any:
        given = (
            {"hidden_states": args[0], **{f"argument {i}": v for i, v in enumerate(args[1:], 2)}}
            if args
            else {}
        )
        given |= kwargs
        hidden = given.pop("hidden_states")
        learned = [name for name, value in given.items() if _learned(value)]
        if learned:
            raise ModelError(
                f"{type(model).__name__} cannot be cut into stages: besides the hidden states its blocks "
                f"read {learned[0]}, made of trained weights in front of them; train it as hf.full"
            )
        return hidden

    def in_tuple(*args: Any, **kwargs: Any) -> Any:
        return alone(*args, **kwargs), None, None

    failures: list[Exception] = []
    for stand_in in (alone, in_tuple):
        start()
        for block in blocks:
            block.forward = stand_in
        try:
            with torch.device("meta"), torch.enable_grad(), _SayYes():
                model(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=False)
            return
        except ModelError:
            raise
        except FAILURES as error:
            failures.append(error)
        finally:
            for block in blocks:
                del block.forward
    raise ModelError(
        f"{type(model).__name__} cannot be cut into stages, its pass without blocks fails "
        f"({failures[0]}; {failures[1]}); train it as hf.full"
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
