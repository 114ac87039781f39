"""What members of a stage call the client for, round by round."""

from __future__ import annotations

from typing import Any

from distqat.distributed.coordination.round_service import RoundService
from distqat.distributed.coordination.slot_grants import SlotGrants
from distqat.distributed.network.call_fields import take
from distqat.errors import BadFrame, Refused
from distqat.topology.expert import ExpertId


async def round_call(
    rounds: RoundService, slots: SlotGrants, method: str, peer: str, fields: dict[str, Any]
) -> dict[str, Any]:
    """The answer to a call of a peer that holds a slot. Raises Refused when it does not, BadFrame."""
    stage, uid = take(fields, "stage", str), take(fields, "uid", str)
    holder = slots.of_peer(peer)
    if holder is None or holder.grant.uid != uid or ExpertId.parse(uid).stage != stage:
        raise Refused(f"{peer} does not hold slot {uid}; ask for a slot again")
    if method == "zero":
        rounds.zero(stage, take(fields, "digest", str))
        return {}
    if method == "restart":
        round, digest = take(fields, "round", int), take(fields, "digest", str)
        return {"generation": rounds.restart(stage, uid, round, digest)}
    if method == "joined":
        return rounds.join(stage, holder.hop, take(fields, "round", int))
    if method == "ready":
        return await rounds.ready(stage, uid, take(fields, "round", int))
    if method == "contribute":
        return await rounds.contribute(stage, uid, fields)
    if method == "vote":
        return await rounds.vote(stage, uid, fields)
    raise BadFrame(f"the client does not answer {method!r}")
