"""The whole configuration: top-level keys and the sections that packages own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
)

from distqat.data.options import DataOptions
from distqat.diloco.options import DilocoOptions
from distqat.options import Options
from distqat.quant.options import QuantOptions
from distqat.swarm.role_addresses import public_addresses

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
Port = Annotated[int, Field(ge=0, le=65535)]

_DEVICE = re.compile(r"cpu|cuda(:\d+)?")
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def split_list(value: Any) -> Any:
    """A string of comma-separated texts becomes a list; anything else stays as it is."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


Addresses = Annotated[list[str], BeforeValidator(split_list)]
Names = Annotated[list[str], BeforeValidator(split_list)]


class StageOptions(Options):
    """One stage of the pipeline; keys beyond the named ones go to the constructor of its model."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True, protected_namespaces=())

    model_name: Annotated[str, Field(pattern=r"^([^\s.]+\.)*[A-Za-z0-9_-]+$")]
    """A key of MODEL_TYPES, such as `resnet18.front`."""
    num_classes: PositiveInt | None = None
    """Outputs of the last layer, where the model has classes."""

    @property
    def stage(self) -> str:
        """Name of the stage in expert UIDs: `front` of `resnet18.front`."""
        return self.model_name.rpartition(".")[2]

    @property
    def kwargs(self) -> dict[str, Any]:
        """What the entry says to the constructor: its extra keys, and num_classes if given."""
        given = {} if self.num_classes is None else {"num_classes": self.num_classes}
        return given | (self.model_extra or {})


def _resnet18() -> list[StageOptions]:
    return [StageOptions(model_name=f"resnet18.{stage}", num_classes=10) for stage in ("front", "back")]


class PipelineOptions(Options):
    """The stages in order, and how long one microbatch may take."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    pipeline: list[StageOptions] = Field(min_length=1, default_factory=_resnet18)
    """The stages, first to last."""
    forward_timeout: PositiveFloat = 90.0
    """Bound of a microbatch's way forward, seconds per stage."""
    backward_timeout: PositiveFloat = 180.0
    """Bound of a microbatch's way back, seconds per stage."""
    microbatches: Annotated[int, Field(ge=1, le=1024)] = 4
    """Slices of a batch, in flight together."""
    activations: Literal["auto", "fp32", "fp16", "int8"] = "auto"
    """How a stage's output travels to the next. auto: as integer codes where the stage's own quantizer made
    it (exact, a quarter of the bytes), else as it is; fp32: always as it is; fp16, int8: as auto, but what
    would travel as it is while training is shortened, at a loss. Gradients travel as they are."""

    @field_validator("pipeline")
    @classmethod
    def _distinct_stages(cls, pipeline: list[StageOptions]) -> list[StageOptions]:
        names = [entry.stage for entry in pipeline]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            same = [entry.model_name for entry in pipeline if entry.stage == twice[0]]
            fix = ", ".join(f"{name}{number}" for number, name in enumerate(same, start=1))
            raise ValueError(
                f"two stages are named {twice[0]!r}; expert UIDs need distinct stage names: "
                f"number them, {fix}"
            )
        return pipeline


class MirrorOptions(Options):
    """Copies of the parameters on the client's host, and checkpoints."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    enable: bool = True
    """Keep a mirror of the committed parameters."""
    refresh_every: PositiveFloat = 30.0
    """Seconds between two checkpoint steps, and between two copies of the mirror."""
    upload_rate: PositiveFloat | None = 50.0
    """MB/s that one server, or the mirror, spends on those who fetch a state from it; null: no limit."""
    checkpoint_dir: str | None = None
    """Where checkpoints go; null: checkpoints/{experiment_prefix}."""


class Config(Options):
    """A whole run. Roles and launchers see it; everything lower is handed its own section."""

    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())

    wandb_project: str | None = None
    """Weights & Biases project; null: local metrics only."""
    experiment_prefix: str = "distqat"
    """Name of the run: in the directory, in logs/ and in checkpoints/."""
    plugins: Names = Field(default_factory=list)
    """Files and modules that register models, tasks, data sets."""
    start_from: str | None = None
    """A checkpoint folder or model.safetensors of the same model: the run begins with its weights instead of
    the seed's, and quantizes them as `quant` says. Read where the first server of each stage runs."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of initialisation, data order and dropout."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    world_size: PositiveInt = 1
    """Pipelines that run_local.py starts: replicas per stage."""
    eval_every: PositiveInt | None = None
    """Rounds between two looks of the client at the held-out data; null: only at the end."""
    spawn_trainers: bool = True
    """Start a trainer for each complete pipeline; false: loops of one's own train (docs/custom_loop.md)."""
    max_expert_index: PositiveInt = 128
    """Expert indices stay below this."""
    initial_peers: Addresses = Field(default_factory=list)
    """Addresses of peers to join, /ip4/IP/tcp/PORT/p2p/ID; commas separate them in a string."""
    host_maddrs: Addresses = Field(default_factory=list)
    """Addresses to listen on; empty: from the role's port, loopback only unless public_ip is given."""
    announce_maddrs: Addresses = Field(default_factory=list)
    """Addresses to announce; empty: from public_ip and the port."""
    public_ip: str | None = None
    """The IPv4 or IPv6 address that others reach this host at, or both with a comma; null: loopback only."""
    monitor_port: Port = 50000
    """TCP port of the monitor; 0: any free one. (So for all ports.)"""
    server_base_port: Port = 50500
    """TCP port of the first server of a host; server i takes this plus i."""
    client_port: Port = 51000
    """TCP port of the trainer client."""
    refresh_period: PositiveFloat = 300.0
    """Seconds between two reports of the monitor to Weights & Biases."""
    log_dir: str = ""
    """Where logs go; empty or null: logs/{experiment_prefix}."""
    store_ip_addresses_path: str = ""
    """Where the monitor writes its addresses; empty or null: {log_dir}/initial_peers.txt."""
    log_level: LogLevel = "INFO"
    """What goes to the logs."""
    data: DataOptions = DataOptions()
    diloco: DilocoOptions = DilocoOptions()
    model_pipeline: PipelineOptions = PipelineOptions()
    param_mirror: MirrorOptions = MirrorOptions()
    quant: QuantOptions = QuantOptions()

    @property
    def checkpoint_dir(self) -> Path:
        """Where checkpoints go, resolved."""
        return Path(self.param_mirror.checkpoint_dir or f"checkpoints/{self.experiment_prefix}")

    @property
    def stages(self) -> list[str]:
        """Names of the stages, first to last."""
        return [entry.stage for entry in self.model_pipeline.pipeline]

    @field_validator("experiment_prefix")
    @classmethod
    def _usable_in_paths(cls, prefix: str) -> str:
        if not _PREFIX.fullmatch(prefix):
            raise ValueError(
                f"{prefix!r} must start with a letter or digit and hold only those, '.', '_', '-'"
            )
        return prefix

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not _DEVICE.fullmatch(device):
            raise ValueError(f"unknown value {device!r}; use 'cpu', 'cuda' or 'cuda:N'")
        return device

    @field_validator("initial_peers")
    @classmethod
    def _peer_addresses(cls, addresses: list[str]) -> list[str]:
        for address in addresses:
            if not address.startswith("/") or "/p2p/" not in address:
                raise ValueError(f"{address!r} is not a peer address like /ip4/IP/tcp/PORT/p2p/ID")
        return addresses

    @field_validator("host_maddrs", "announce_maddrs")
    @classmethod
    def _addresses(cls, addresses: list[str]) -> list[str]:
        for address in addresses:
            if not address.startswith("/"):
                raise ValueError(f"{address!r} is not an address like /ip4/IP/tcp/PORT")
        return addresses

    @field_validator("public_ip")
    @classmethod
    def _ip_address(cls, address: str | None) -> str | None:
        return None if address is None else ",".join(map(str, public_addresses(address)))

    @field_validator("log_level", mode="before")
    @classmethod
    def _any_case(cls, level: Any) -> Any:
        return level.upper() if isinstance(level, str) else level

    @field_validator("log_dir", mode="before")
    @classmethod
    def _follow_prefix(cls, given: Any, info: ValidationInfo) -> Any:
        return given or f"logs/{info.data.get('experiment_prefix', '')}"

    @field_validator("store_ip_addresses_path", mode="before")
    @classmethod
    def _follow_log_dir(cls, given: Any, info: ValidationInfo) -> Any:
        return given or f"{info.data.get('log_dir', '')}/initial_peers.txt"
