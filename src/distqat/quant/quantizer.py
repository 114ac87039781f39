"""Quantizers of one tensor each, and their states.

    calibrating --activate--> active --freeze--> frozen
              \\--> waiting --> active, or frozen

calibrating: values pass in float; activation quantizers count what they see in training mode.
active: values are fake-quantized and log(step) learns. frozen: the same, and the step stays (one that is made
from the weights follows them until they are trained no more).
waiting: of a tensor that calibration saw nothing of but zeros; as calibrating, while the rest of the stage
trains (`distqat.quant.late_calibration`).

There is no way back. Everything a quantizer knows is a parameter (`log_step`) or a persistent buffer, so a
state dict carries it to the bit and a snapshot of the buffers undoes what an aborted attempt observed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from distqat.errors import QuantError
from distqat.quant import mse_step
from distqat.quant.fake_quantize import step_size
from distqat.quant.methods import get_method
from distqat.quant.methods.method import QuantizerGrid
from distqat.quant.options import InitName

QuantState = Literal["calibrating", "active", "frozen", "waiting"]
STATES: tuple[QuantState, ...] = ("calibrating", "active", "frozen", "waiting")
"""By their codes in the buffer `state_code`."""

UNSEEN_RANGE = 1.0
"""What the largest code stands for of a tensor that nothing is known of: it waits with that step."""


@dataclass(frozen=True)
class QuantizerSettings:
    """A method of `quant.methods` by name, where its steps begin, and whether its arithmetic is compiled."""

    method: str = "lsq"
    init: InitName = "mse"
    compiled: bool = False


class Quantizer(nn.Module):
    """What both kinds share: the learned `log_step`, and the state in a buffer. `name` stands in errors."""

    log_step: nn.Parameter
    state_code: Tensor

    def __init__(
        self,
        name: str,
        bits: int,
        shape: tuple[int, ...],
        device: torch.device | None,
        how: QuantizerSettings,
    ) -> None:
        super().__init__()
        self.name = name
        self.bits = bits
        self.how = how
        self.method = get_method(how.method)
        self.log_step = nn.Parameter(torch.zeros(shape, device=device), requires_grad=self.method.learns_step)
        self.register_buffer("state_code", torch.zeros((), dtype=torch.uint8, device=device))
        self._read: dict[str, tuple[Tensor, int, int]] = {}

    @property
    def state(self) -> QuantState:
        """calibrating, active, frozen or waiting."""
        return STATES[self._flag("state_code")]

    @property
    def in_float(self) -> bool:
        """Whether values pass as they are: its step is still to be found."""
        return self.state in ("calibrating", "waiting")

    @property
    def step(self) -> Tensor:
        """The step (not its logarithm), detached; meaningful once active."""
        return step_size(self.log_step.detach())

    def begin(self, step: Tensor) -> None:
        """To active, with this step. Raises QuantError if it has been active, or for a bad step."""
        if not self.in_float:
            raise QuantError(f"{self.name} is {self.state}; only a calibrating quantizer can be activated")
        if not bool(torch.isfinite(step).all() & (step > 0).all()):
            raise QuantError(
                f"{self.name}: calibration found no positive finite step; check weights and data"
            )
        with torch.no_grad():
            self.log_step.copy_(step.log())
            self.state_code.fill_(STATES.index("active"))

    def wait(self, step: Tensor) -> None:
        """calibrating -> waiting; `step` is what it has if values never come."""
        if self.state != "calibrating":
            raise QuantError(f"{self.name} is {self.state}; only a calibrating quantizer can wait for values")
        with torch.no_grad():
            self.log_step.copy_(step.log())
            self.state_code.fill_(STATES.index("waiting"))

    def freeze(self) -> None:
        """To frozen, from active or waiting. Raises QuantError while calibrating; frozen stays frozen."""
        if self.state == "calibrating":
            raise QuantError(f"{self.name} is calibrating; activate it before it can be frozen")
        self.state_code.fill_(STATES.index("frozen"))

    def _learned_log_step(self, state: QuantState) -> Tensor:
        return self.log_step.detach() if state == "frozen" else self.log_step

    def _flag(self, buffer_name: str) -> int:
        """The value of a scalar buffer, read again only after it was written: reading one waits for a GPU."""
        buffer = self._buffers[buffer_name]
        assert buffer is not None
        known = self._read.get(buffer_name)
        if known is None or known[0] is not buffer or known[1] != buffer._version:
            known = self._read[buffer_name] = (buffer, buffer._version, int(buffer))
        return known[2]


class ActivationQuantizer(Quantizer):
    """One step per tensor; codes 0..2**bits - 1 where unsigned, else +-(2**(bits - 1) - 1).

    `signed` "auto" is decided at activation: unsigned when nothing below zero (by 2**-24 or more) was seen.
    A method with an offset has all 2**bits codes around a learned zero point instead.
    """

    offset: nn.Parameter | None
    signed: Tensor
    counts: Tensor
    batches: Tensor

    def __init__(
        self,
        name: str,
        *,
        bits: int,
        signed: Literal["auto"] | bool,
        device: torch.device | None = None,
        how: QuantizerSettings | None = None,
    ) -> None:
        super().__init__(name, bits, (), device, how or QuantizerSettings())
        offset = nn.Parameter(torch.zeros((), device=device)) if self.method.has_offset else None
        self.register_parameter("offset", offset)
        self.signed_option = signed
        self.observing = True
        """False while the module that owns this is fed a dummy batch; see wrap.quantize_module."""
        self.leaves_stage = False
        """Whether its codes travel to the next stage: then no zero is negative, as no integer is."""
        self.register_buffer("signed", torch.tensor(signed is not False, device=device))
        self.register_buffer("counts", torch.zeros(2, mse_step.BINS, dtype=torch.int64, device=device))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64, device=device))
        self.looked = {"zeros": 0, "tiny": 0, "not finite": 0}
        """Batches that were not counted, by why: for people, so an aborted attempt stays in it."""

    @property
    def code_range(self) -> tuple[int, int]:
        """(lowest, highest) integer code; zero is always one of them, and stands for zero."""
        if self.offset is not None:
            highest = 2**self.bits - 1
            zero = int((-self.offset.detach() / self.step).round().clamp(0, highest))
            return -zero, highest - zero
        if self._flag("signed"):
            return -(2 ** (self.bits - 1) - 1), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Count one batch; an empty one, one of zeros and values below 2**-24, and one that is not finite
        change nothing.

        Raises QuantError unless calibrating or waiting.
        """
        if not self.in_float:
            raise QuantError(f"{self.name} is {self.state}; only a calibrating quantizer observes")
        if x.numel() == 0:
            return
        if not bool(torch.isfinite(x).all()):
            self.looked["not finite"] += 1
            return
        counts = mse_step.histogram(x)
        if not any(mse_step.seen_values(counts)):
            self.looked["tiny" if bool(x.any()) else "zeros"] += 1
            return
        self.counts += counts
        self.batches += 1

    @property
    def unseen_step(self) -> Tensor:
        """The step to wait with."""
        return torch.tensor(UNSEEN_RANGE / (2 ** (self.bits - 1) - 1))

    def can_begin(self, counts: Tensor) -> bool:
        """Whether `counts` tell of values that its codes can hold."""
        above, below = mse_step.seen_values(counts)
        return above or (below and (self.signed_option is not False or self.offset is not None))

    def initial_step(self, counts: Tensor | None = None) -> tuple[Tensor, bool, Tensor]:
        """(first step, signed, offset) for what was observed, or for these counts; QuantError if nothing."""
        counts = self.counts if counts is None else counts
        above, below = mse_step.seen_values(counts)
        if not above and not below:
            raise QuantError(
                f"{self.name} has seen no real data; run real batches through it in training mode before "
                f"activating it, or put its layer under quant.skip"
            )
        if self.offset is not None:
            step, lowest = mse_step.shifted_step(counts, 2**self.bits - 1, search=self.how.init == "mse")
            return torch.tensor(step), below, torch.tensor(lowest)
        signed = below if self.signed_option == "auto" else self.signed_option
        if not signed and not above:
            raise QuantError(
                f"{self.name} is unsigned but saw no positive value; set quant.activation.signed: auto"
            )
        qmax = 2 ** (self.bits - 1) - 1 if signed else 2**self.bits - 1
        if self.how.init == "minmax" or self.how.method == "minmax":
            step = mse_step.largest_value(counts, negative=signed) / qmax
        else:
            step = mse_step.histogram_step(counts, -qmax if signed else 0, qmax)
        return torch.tensor(step), signed, torch.tensor(0.0)

    def check_observed(self) -> None:
        """Raises QuantError if only NaN and infinity came, or what unsigned codes cannot hold."""
        above, below = mse_step.seen_values(self.counts)
        finite = self.looked["zeros"] or self.looked["tiny"]
        if not above and not below and self.looked["not finite"] and not finite:
            raise QuantError(
                f"{self.name}: every batch of calibration has NaN or infinity here, before anything was "
                "trained; look at the initial weights, at what is computed in front of this layer, and at "
                "the data"
            )
        if self.signed_option is not False or self.offset is not None or not below:
            return
        if not above:
            raise QuantError(
                f"{self.name} is unsigned but saw no positive value; set quant.activation.signed: auto"
            )
        lowest = mse_step.largest_value(self.counts.flip(0), negative=False)
        if lowest > mse_step.largest_value(self.counts, negative=False) / self.code_range[1]:
            raise QuantError(
                f"{self.name} is unsigned (quant.activation.signed: false), but calibration saw values "
                f"down to {-lowest:.3g}, which would all become 0; set quant.activation.signed: auto"
            )

    def begin_calibrated(self, step: Tensor, signed: bool, offset: Tensor) -> None:
        """To active; the statistics have served and are cleared."""
        self.begin(step)
        if self.offset is not None:
            with torch.no_grad():
                self.offset.copy_(offset)
        self.signed.fill_(signed)
        self.counts.zero_()
        self.batches.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, ...] as the integers will have it; itself while calibrating or waiting.

        The N of the gradient scale is the size of one sample (the layer's features, as in the paper), so that
        the gradients of microbatches add up to that of the batch.
        """
        state = self.state
        if state in ("calibrating", "waiting"):
            if self.training and self.observing:
                self.observe(x)
            return x
        qmin, qmax = self.code_range
        features = max(x.numel() // max(x.shape[0], 1), 1) if x.dim() else 1
        grid = _tensor_grid(qmin, qmax, features, self.how.compiled)
        offset: Tensor | None = self.offset
        if offset is not None and state == "frozen":
            offset = offset.detach()
        y = self.method.fake_quantize(x, self._learned_log_step(state), offset, grid)
        return y + 0.0 if self.leaves_stage else y

    def extra_repr(self) -> str:
        """Shown in the printed module."""
        kind = "shifted" if self.offset is not None else "signed" if self._flag("signed") else "unsigned"
        return f"bits={self.bits}, {kind}, {self.state}"


@lru_cache(maxsize=1024)
def _tensor_grid(qmin: int, qmax: int, features: int, compiled: bool) -> QuantizerGrid:
    return QuantizerGrid(qmin, qmax, None, (features * max(qmax, -qmin)) ** -0.5, compiled)
