"""Every error that DistQat raises on purpose. Each says what happened, where, and what to do.

DistqatError
├── ConfigError             the configuration cannot be used           (exit 2, no traceback)
│   ├── UnknownName         a name that no registry knows; names the nearest
│   ├── MissingExtra        a package of an extra is not installed     (pip install distqat[EXTRA])
│   └── ClockSkew           the clock of this machine is off           (set it)
├── SwarmError              something about peers
│   ├── StageUnavailable    nobody serves a stage                      (retry when one appears)
│   ├── PeerGone            the peer closed or died in mid-call        (retry over another replica)
│   ├── CallTimeout         a deadline passed                          (retry over another replica)
│   ├── Busy                the peer is full                           (retry later)
│   ├── Refused             the peer answered no, and why              (do not retry as it is)
│   │   └── Unreachable     a server that others cannot connect to     (its address, its port)
│   ├── RemoteFault         an exception at the peer that nobody foresaw  (retry; if it repeats, RunFailed)
│   ├── StaleAttempt        a newer attempt of the step exists         (drop it)
│   ├── ProtocolMismatch    another protocol version or config         (change the config)
│   └── DirectoryUnavailable  the look-up failed: unknown, not empty   (keep the last plan)
├── RunFinished             the client said that the run is over       (leave)
├── RunFailed               an error that will not go away by trying again  (end, and say it)
├── BadFrame                bytes from a peer that are not a frame
├── BadContribution         a delta that must not be averaged
├── ModelError, TaskError, QuantError
├── DataError
│   ├── HubUnavailable      the dataset hub cannot be reached
│   └── DataServerGone
├── CheckpointError
├── ExportError             a model cannot be exported, or an exported file not used
└── RoleError               a role cannot serve: port in use, device missing
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class DistqatError(Exception):
    """Base of all errors that DistQat raises on purpose.

    `log`: where more stands, when it is what another role ended with.
    """

    log: Path | None = None


class ConfigError(DistqatError):
    """The configuration cannot be used as it stands."""


class UnknownName(ConfigError):
    """`name` is in no registry of this kind; the message gives the nearest known one."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        super().__init__(f"unknown {kind} {name!r}{hint} known: {', '.join(names)}")
        self.name = name
        self.nearest = close[0] if close else None


class MissingExtra(ConfigError):
    """A package that an extra of ours installs is not there; `extra` is its name."""

    def __init__(self, package: str, extra: str, why: str = "") -> None:
        super().__init__(
            f"{f'{why} needs' if why else 'this needs'} the package {package!r}, which is not installed: "
            f"pip install 'distqat[{extra}]'"
        )
        self.extra = extra


class ClockSkew(ConfigError):
    """The clock of this machine and those of its peers differ too much for records to be seen."""


class SwarmError(DistqatError):
    """Something about peers; `code` travels on the wire, and `at`, the UID of the replica concerned."""

    code = "error"
    at: str | None = None


class StageUnavailable(SwarmError):
    """No live replica of a stage."""

    code = "unavailable"


class PeerGone(SwarmError):
    """The peer closed the stream or died in mid-call."""

    code = "gone"


class CallTimeout(SwarmError):
    """The peer did not answer within the deadline."""

    code = "timeout"


class Busy(SwarmError):
    """The peer has no room for this request now."""

    code = "busy"


class Refused(SwarmError):
    """The peer understood and said no."""

    code = "refused"


class Unreachable(Refused):
    """A server that others cannot connect to gets no slot."""

    code = "unreachable"


class RemoteFault(SwarmError):
    """The peer met an exception other than a SwarmError.

    `kind` is its class, `place` its `file:line`, `said` its text without the peers that it came through.
    """

    code = "fault"
    kind: str = ""
    place: str = ""
    said: str = ""


class StaleAttempt(SwarmError):
    """A newer attempt of the same step exists, or the step is over."""

    code = "stale"


class ProtocolMismatch(SwarmError):
    """The peer speaks another protocol version or runs another configuration."""

    code = "mismatch"


class DirectoryUnavailable(SwarmError):
    """The look-up failed: nothing is known. An empty answer is not this."""

    code = "directory"


class RunFinished(DistqatError):
    """The run came to its end while this role was away: there is nothing to serve any more."""


class RunFailed(DistqatError):
    """An error that will not go away by trying again: whoever meets it ends, and is not started again."""


class BadFrame(SwarmError):
    """Bytes from a peer that are not a valid frame."""

    code = "bad_frame"


class BadContribution(SwarmError):
    """A contribution to a round that must not be averaged."""

    code = "bad_contribution"


class ModelError(DistqatError):
    """A stage cannot be built or does not fit its neighbour."""


class TaskError(DistqatError):
    """A task cannot be built or its data does not fit."""


class QuantError(DistqatError):
    """A quantizer or a quantization rule cannot be used."""


class DataError(DistqatError):
    """Data cannot be read."""


class HubUnavailable(DataError):
    """The dataset hub cannot be reached; the message names the embedded alternative."""


class DataServerGone(DataError):
    """The data server closed its socket."""


class CheckpointError(DistqatError):
    """A checkpoint cannot be read or written."""


class ExportError(DistqatError):
    """A model cannot be exported as asked, or an exported file cannot be used."""


class RoleError(DistqatError):
    """A role cannot serve: a port in use, a device missing, a lost daemon."""
