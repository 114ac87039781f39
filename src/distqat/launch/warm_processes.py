"""The warm processes of a local run, each of which imports only what its roles need.

Two, so that two cores import at once: the monitor and the client serve while the servers' process still
imports the model's code. The first starts before anything else; the second is forked when the launcher has
read the configuration, with whatever the launcher has imported by then.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from distqat.launch.launcher_roles import module_of
from distqat.process import PRELOAD, ForkServerClient

if TYPE_CHECKING:
    from distqat.config import Config

# The first optimizer imports torch._dynamo, 1.4 s: the roles of the network have none.
NETWORK = tuple(name for name in PRELOAD if name != "torch._dynamo")
_MODEL_CODE = {  # 1.4 s, by family of models
    "distilgpt2": "transformers.models.gpt2.modeling_gpt2",
    "gptneo": "transformers.models.gpt_neo.modeling_gpt_neo",
    "hf": "transformers.models.auto.modeling_auto",
    "wav2vec2": "transformers.models.wav2vec2.modeling_wav2vec2",
}


class WarmForkServers:
    """One fork server for the roles of the network, another for servers."""

    def __init__(self, network: ForkServerClient) -> None:
        self.network = network
        self._servers: ForkServerClient | None = None

    @classmethod
    def start(cls) -> WarmForkServers:
        """Start the first; returns at once. Call it before anything slow is imported."""
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads that numpy starts would forbid a fork
        return cls(
            ForkServerClient.start(
                (*NETWORK, *map(module_of, ("monitor", "client", "trainer", "data-server")))
            )
        )

    def start_servers(self, config: Config) -> None:
        """Fork the one for servers of `config`'s model, outside any event loop."""
        import torch  # noqa: F401  once for both: the fork inherits it, and the status feed needs it here

        self._servers = ForkServerClient.start((*PRELOAD, *model_modules(config), module_of("server")))

    @property
    def servers(self) -> ForkServerClient:
        """Where servers are forked from; `start_servers` comes first."""
        assert self._servers is not None, "start_servers comes first"
        return self._servers

    async def close(self) -> None:
        """End both, and what they still run."""
        each = [fork_server for fork_server in (self.network, self._servers) if fork_server is not None]
        await asyncio.gather(*(fork_server.close() for fork_server in each))


def model_modules(config: Config) -> tuple[str, ...]:
    """Modules that the stages of this pipeline are built from and that are slow to import."""
    families = dict.fromkeys(entry.model_name.partition(".")[0] for entry in config.model_pipeline.pipeline)
    return tuple(_MODEL_CODE[family] for family in families if family in _MODEL_CODE)
