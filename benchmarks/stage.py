"""One replica of a stage that is driven directly: a server's steps without its slots and rounds."""

from __future__ import annotations

import time
from typing import Any

from distqat.config import Config
from distqat.distributed.assembly.stage_factory import build_module, build_task
from distqat.distributed.serving.activation_encoder import ActivationEncoder
from distqat.distributed.serving.compute_thread import ComputeThread
from distqat.distributed.serving.forward_precision import ForwardPrecision
from distqat.distributed.serving.replica import StageReplica
from distqat.distributed.serving.serving_observer import ServingObserver
from distqat.distributed.serving.step_service import StepService
from distqat.protocol.call_schema import parse
from distqat.protocol.hop import Hop
from distqat.swarm.call_channel import IncomingCall
from distqat.swarm.call_messages import CallHandlers
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import Transport

LEASE_S = 120.0


class Stage:
    """Answers what trainers ask of a server, and two questions of benchmarks: `status` and `state`."""

    def __init__(self, config: Config, stage: str, transport: Transport) -> None:
        self.uid = f"{stage}.0.0.0"
        self.replica = StageReplica(
            build_module(config, stage),
            config.diloco,
            config.quant,
            stage=stage,
            precision=ForwardPrecision(),
            task=build_task(config) if stage == config.stages[-1] else None,
            activations=config.model_pipeline.activations,
        )
        self._compute = ComputeThread(1)
        self._transport = transport
        self._steps = StepService(
            self.replica,
            self._compute,
            transport,
            ServingObserver(),
            uid=self.uid,
            run=config.experiment_prefix,
            lease_s=LEASE_S,
        )
        self._calls = {"status": self._status, "state": self._state}
        self._handlers = CallHandlers(self.uid, self._steps.handlers)

    async def answer(self, call: IncomingCall) -> Message:
        return await self._calls.get(call.method, self._handlers.answer)(call)

    def send(self, activations: str) -> None:
        """From now on what leaves goes in this form."""
        replica = self.replica
        replica.sending = ActivationEncoder(replica.module, activations, stage=replica.stage)

    async def close(self) -> None:
        await self._steps.close()
        self._compute.stop()

    async def _status(self, call: IncomingCall) -> Message:
        """Seconds by kind of job so far, CPU of this event loop, and bytes of the link to the hop `next`."""
        spent = self._compute.spent
        fields: dict[str, Any] = {
            "calibrating": self.replica.calibrating,
            "compute_cpu_s": {kind: each.cpu_s for kind, each in spent.items()},
            "compute_wall_s": {kind: each.wall_s for kind, each in spent.items()},
            "loop_cpu_s": time.thread_time(),
            "link": [0, 0],
        }
        if "next" in call.message.fields:
            link = await self._transport.link(parse(Hop, call.message.fields["next"]).address)
            fields["link"] = [link.bytes_out(), link.bytes_in()]
        return Message(fields)

    async def _state(self, call: IncomingCall) -> Message:
        """The module's state, on its way to a comparison."""
        tensors = self.replica.module.state_dict()
        return Message(tensors={name: tensor.detach().clone() for name, tensor in tensors.items()})
