"""run_local.py, or with $LAUNCHER test_failover.py, over roles of this file; $SCENE says how it goes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distqat.errors import ConfigError, RunFailed
from distqat.process import RoleParameters, announce_ready, claim_port, host_id, run_role, runtime_dir

ROOT = Path(__file__).parents[2]
MONITOR = "/ip4/127.0.0.1/tcp/50000/p2p/QmMonitor"


def value_of(argv: Sequence[str], flag: str) -> str:
    return next(word.partition("=")[2] for word in argv if word.startswith(f"{flag}="))


def monitor(argv: Sequence[str]) -> int:
    parameters = RoleParameters.take()

    async def role(stop: asyncio.Event) -> int:
        port = int(value_of(argv, "--monitor-port"))
        claim_port("127.0.0.1", port, given=True, claimed=parameters.claimed_port)
        announce_ready({"role": "monitor", "peers": [MONITOR]})
        await stop.wait()
        return 0

    return run_role("monitor", role)


def server(argv: Sequence[str]) -> int:
    async def role(stop: asyncio.Event) -> int:
        print("server of", value_of(argv, "--initial-peers"), flush=True)
        if os.environ.get("SCENE") == "broken":
            raise ConfigError("seed: the run has 7; start the server with --seed 7")
        await stop.wait()
        return 0

    return run_role("server", role)


def client(argv: Sequence[str]) -> int:
    """Answers a few statuses, the last of which says that all rounds are done; then the run is finished."""
    from distqat.swarm.call_channel import IncomingCall
    from distqat.swarm.handshake import Admission
    from distqat.swarm.tensor_frame import Message
    from distqat.swarm.transport import StreamTransport, UnixStreams

    parameters = RoleParameters.take()
    local = parameters.run_locally
    asked = asyncio.Event()
    steps = iter([0, 1, 5, 10])

    async def answer(call: IncomingCall) -> Message:
        step = next(steps, 10)
        if step == 10:
            asked.set()
        return Message(status(step, local))

    async def role(stop: asyncio.Event) -> int:
        if os.environ.get("SCENE") == "fail":
            error = RunFailed("the hub cannot be reached; use digits")
            error.log = Path(value_of(argv, "--log-dir")) / "data_server.log"
            raise error
        name = f"Qm{os.getpid()}"
        token = os.environ.get("DISTQAT_TOKEN")
        admission = Admission(value_of(argv, "--experiment-prefix"), name, token)
        transport = StreamTransport(admission, [UnixStreams(runtime_dir(), name, host_id())])
        await transport.serve(answer)
        announce_ready({"role": "client", "peers": [f"/ip4/127.0.0.1/tcp/51000/p2p/{name}"]})
        ends = stop if os.environ.get("SCENE") == "endless" else asked
        await ends.wait()
        await transport.close()
        if ends is asked:
            told = summary(local, parameters.samples or 640)
            if os.environ.get("SCENE") == "unjudged":
                told |= {"value": None, "evaluation_error": "held-out sample 9 cannot be used"}
            (Path(value_of(argv, "--log-dir")) / "summary.json").write_text(json.dumps(told))
            if os.environ.get("SCENE") == "unjudged":
                raise RunFailed("the model is there, its judgement is not")
        return 0

    return run_role("client", role)


def status(step: int, local: bool) -> dict[str, Any]:
    servers = [{"uid": f"{s}.0.{i}.0", "state": "serving"} for s in ("front", "back") for i in (0, 1)]
    return {
        "rounds": {} if local else {"front": step // 5, "back": step // 5},
        "outer_steps": 2,
        "servers": [] if local else servers,
        "trainers": [{"pipeline": 0, "step": step, "loss": 2.0, "sps": 50.0}] if step else [],
        "finished": False,
    }


def summary(local: bool, samples: int) -> dict[str, Any]:
    return {
        "mode": "baseline" if local else "swarm", "metric": "accuracy",
        "value": 0.98 if local else 0.97, "loss_first": 2.3, "loss_last": 0.1,
        "samples": samples, "samples_per_s": 50.0, "seconds": 12.0, "model": "ck/model.safetensors",
        "checkpoints": "ck", "bytes_sent": {} if local else {"front.0.0.0": 10, "client": 1},
    }  # fmt: skip


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = str(ROOT)
    from distqat.drill import failover_drill
    from distqat.launch import launcher_roles, local_swarm, run_local, warm_processes

    launcher_roles.entry_of = lambda kind: f"tests.integration.local_scene:{kind}"
    warm_processes.PRELOAD = warm_processes.NETWORK = ()
    warm_processes.module_of = launcher_roles.module_of
    local_swarm.LEAVE_S = 0.1  # these servers do not hear that the run is finished
    launcher = failover_drill if "LAUNCHER" in os.environ else run_local
    sys.exit(launcher.main(sys.argv[1:]))
