"""The client looks at the model every `eval_every` rounds, while it is trained on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from distqat.config import Config
from distqat.data.source import Source
from distqat.distributed.assembly.evaluation import EvaluationResult, build_all, judge
from distqat.distributed.assembly.stage_factory import open_data
from distqat.distributed.coordination.fetch_committed import collect_states
from distqat.distributed.coordination.round_service import RoundService
from distqat.distributed.serving.committed_state import as_local
from distqat.failures import describe
from distqat.metrics import Sink
from distqat.process import notice
from distqat.swarm.transport import Transport

logger = logging.getLogger(__name__)

Modules = Mapping[str, nn.Module]


class PeriodicEvaluation:
    """Judges committed rounds in a thread. One that cannot be had is a warning: training goes on."""

    def __init__(
        self,
        config: Config,
        rounds: RoundService,
        transport: Transport,
        sink: Sink,
    ) -> None:
        self.latest: dict[str, Any] = {}
        """The last judgement, as the sink got it."""
        self._config = config
        self._rounds = rounds
        self._transport = transport
        self._sink = sink
        self._modules: asyncio.Future[dict[str, nn.Module]] | None = None
        self._due = config.eval_every or 0
        self._changed = asyncio.Event()
        self._source: Source | None = None
        self.using_modules = asyncio.Lock()
        """Held while the modules carry a state that is looked at."""

    def prepare(self) -> None:
        """Build the model while servers train: its libraries take seconds to import."""
        if self._modules is None:
            self._modules = asyncio.ensure_future(asyncio.to_thread(build_all, self._config))

    async def modules(self) -> Modules:
        """The stages that committed states are loaded into."""
        self.prepare()
        assert self._modules is not None
        return await self._modules

    def ended(self, record: Mapping[str, Any]) -> None:
        """A round of some stage has ended."""
        if record.get("committed"):
            self._changed.set()

    async def run(self) -> None:
        """Until cancelled: once every stage has committed the round that is due."""
        every = self._config.eval_every
        while every is not None:
            await self._changed.wait()
            self._changed.clear()
            done = self._committed_everywhere()
            if done < self._due or done >= self._config.diloco.outer_steps:
                continue  # after the last round the model is judged anyway
            self._due = done - done % every + every
            try:
                await self._look(done)
            except Exception as error:  # noqa: BLE001  whatever a look meets, training goes on
                notice(f"round {done} is not evaluated: {describe(error)}; training goes on")

    async def _look(self, round: int) -> None:
        modules = await self.modules()
        states = await collect_states(self._config, self._transport, self._rounds)
        async with self.using_modules:
            for stage, module in modules.items():
                as_local(states[stage]).load(module)
            judged = await asyncio.to_thread(self._beside_training, modules)
        logger.info("Evaluation after round %d: %s, loss %.5f", round, judged.line(), judged.loss)
        told = {"metric": judged.metric, "value": judged.value, "loss": judged.loss, "count": judged.count}
        self.latest = {"event": "evaluation", "round": round, **told}
        self._sink.write(self.latest)

    def _committed_everywhere(self) -> int:
        newest = [self._rounds.round_of(stage) for stage in self._config.stages]
        return min((entry[0] if entry else 0 for entry in newest), default=0)

    def _beside_training(self, modules: Modules) -> EvaluationResult:
        torch.set_num_threads(1)  # of this thread: the servers of this host need the cores
        if self._source is None:
            self._source = open_data(self._config)
        return judge(self._config, modules, self._source)
