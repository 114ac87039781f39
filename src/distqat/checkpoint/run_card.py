"""What a checkpoint folder or a model file says of the run that made it: enough to build and read the model.

{folder}/run.json                     beside the rounds
metadata `card` of a safetensors file
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from pydantic import Field, JsonValue

from distqat.checkpoint.digested_json import believed, seal, unseal
from distqat.checkpoint.tensor_file import disk_errors, replace_file
from distqat.errors import CheckpointError
from distqat.options import Options

CARD = "run.json"
METADATA = "card"
FORMAT = 1


class RunCard(Options):
    """Of a run: its name, its configuration without the keys of a host, and the names of its classes."""

    format: int = FORMAT
    run: str
    generation: int
    """In which it was written; Unix time, so later means newer. 0 in a model file."""
    config: dict[str, JsonValue]
    classes: list[str] = Field(default_factory=list)
    """By class number; empty where the data set does not name them."""
    folders: list[str] = Field(default_factory=list)
    """Absolute paths on the host of the run that relative paths in `config` counted from."""
    written_at: str = ""
    """UTC, ISO 8601."""

    def to_share(self) -> RunCard:
        """For a model file, which is given to others: without the folders of this host.

        And without the time, so that a run that was cut off and resumed ends in the same bytes.
        """
        plugins = self.config.get("plugins")
        names: list[JsonValue] = (
            [Path(str(name)).name for name in plugins] if isinstance(plugins, list) else []
        )
        config = {**self.config, "plugins": names}
        return self.model_copy(update={"folders": [], "config": config, "generation": 0, "written_at": ""})

    def to_json(self) -> bytes:
        """The file, with a digest over itself."""
        return seal(self.model_dump(mode="json"))

    @classmethod
    def parse(cls, where: Path, data: bytes) -> RunCard:
        """Raises CheckpointError unless it is as it was written."""
        return believed(cls, where, unseal(where, data), FORMAT)


def write_card(folder: Path, card: RunCard) -> Path:
    """Put it in place of what is there, in one step. Raises CheckpointError when it cannot be written."""
    path = folder / CARD
    stamped = card.model_copy(update={"written_at": datetime.now(timezone.utc).isoformat(timespec="seconds")})
    with disk_errors(path):
        replace_file(path, [stamped.to_json()])
    return path


def read_card(path: Path) -> RunCard | None:
    """That of a checkpoint folder or of a model file; None where there is none, as in older ones.

    Raises CheckpointError for one that is not as it was written.
    """
    if path.is_dir():
        return _of_folder(path)
    text = model_metadata(path).get(METADATA)
    if text is None:
        return None
    card = RunCard.parse(path, text.encode())
    try:
        beside = _of_folder(path.parent)
    except CheckpointError:
        return card
    same = beside is not None and beside.to_share().config == card.config and beside.run == card.run
    return beside if same else card  # the one beside knows the folders of its host


def _of_folder(folder: Path) -> RunCard | None:
    path = folder / CARD
    try:
        return RunCard.parse(path, path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def model_metadata(path: Path) -> dict[str, str]:
    """What is told beside the tensors of a model file. Raises CheckpointError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a model file: {error}") from error
