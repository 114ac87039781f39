"""What quantizing a stage did: its layers, its joints, and what stays in float and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LayerReport:
    """One quantized layer."""

    name: str
    kind: str
    weight_bits: int
    activation_bits: int


@dataclass(frozen=True)
class QuantReport:
    """What `quantize_module` did to one stage, and what it left in float and why."""

    stage: str
    enabled: bool
    layers: tuple[LayerReport, ...]
    left_out: tuple[tuple[str, str], ...]
    joints: tuple[str, ...] = ()
    """Modules whose output is quantized where it is produced."""
    sends: str | None = None
    """The one of them whose codes are what leaves the stage."""
    embeddings: Mapping[str, int] = field(default_factory=dict)
    """Bits of the embeddings whose rows are codes."""
    ungrouped: tuple[str, ...] = ()
    """Linear layers with a step per channel although one per group was asked for: no multiple of a group."""

    def lines(self) -> list[str]:
        """For the log: one line in all, one per pair of bits, one per reason why something stays in float."""
        if not self.enabled:
            return [f"{self.stage}: quantization is off"]
        lines = [f"{self.stage}: {len(self.layers)} layers quantized, {len(self.left_out)} left in float"]
        if self.joints:
            lines.append(f"  joints: {len(self.joints)} ({self.joints[0]} ... {self.joints[-1]})")
        groups: dict[str, list[str]] = {}
        for layer in self.layers:
            groups.setdefault(f"W{layer.weight_bits}A{layer.activation_bits}", []).append(layer.name)
        lines += [f"  {bits}: {len(names)} ({names[0]} ... {names[-1]})" for bits, names in groups.items()]
        if self.ungrouped:
            ends = f"{self.ungrouped[0]} ... {self.ungrouped[-1]}"
            lines.append(
                f"  per channel, not per group: {len(self.ungrouped)} ({ends}), whose inputs are no multiple "
                "of quant.weight.group"
            )
        lines += [f"  embedding of {bits} bits: {name}" for name, bits in self.embeddings.items()]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left_out:
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            lines.append(f"  float: {names[0]}{more} ({reason})")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())
