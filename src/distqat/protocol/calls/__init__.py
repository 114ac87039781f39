"""All calls between roles: `CALLS` knows each by its method. docs/protocol.md is made of them."""

from distqat.protocol.call_schema import CALLS
from distqat.protocol.calls import round_calls, slot_calls, step_calls, transfer_calls

__all__ = ["CALLS", "round_calls", "slot_calls", "step_calls", "transfer_calls"]
