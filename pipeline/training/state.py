"""What it takes to go on with a training: one safetensors file beside the model, with JSON in its header. No pickle.

FOLDER/training/state.safetensors     while it trains: about three times the model, as float32
                                      when it is done: only the header, so that the same command does not start anew
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import UsageError

STATE_FILE = Path("training") / "state.safetensors"
_HEADER_KEY = "tokenmill-training"


@dataclass(frozen=True, slots=True)
class State:
    """A training between two steps.

    Attributes:
        step: steps done.
        config: what decides the weights.
        progress: whatever else the training needs to go on, as JSON.
        tensors: weights, moments of the optimizer and the like, by name; none in the record of a finished training.
    """

    step: int
    config: dict[str, Any]
    progress: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def finished(self) -> bool:
        """Whether this is only the record of a training that is done."""
        return not self.tensors

    def check(self, config: dict[str, Any], folder: Path) -> None:
        """Refuses to go on under another configuration.

        Raises:
            UsageError: `config` is not the one that the training began with; the text says what differs.
        """
        differences = list(_differences(self.config, config, ""))
        if differences:
            raise UsageError(
                f"{folder} holds a training of another configuration: {'; '.join(differences)}. Give the same one to "
                "go on, or another output folder"
            )

    def check_made(self, folder: Path, names: Iterable[str]) -> None:
        """Refuses the record of a finished training that lies in `folder` without what the training made.

        Raises:
            UsageError: one of the files is gone.
        """
        if self.finished and (gone := [name for name in names if not (folder / name).exists()]):
            raise UsageError(
                f"{folder} holds the record of a finished training, but no {', '.join(gone)}: empty the folder to "
                "train anew, or give another output folder"
            )


def write_state(folder: Path, state: State) -> None:
    """Writes the state of the training in `folder`; the old one stays until the new one is whole."""
    path = folder / STATE_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {name: getattr(state, name) for name in ("step", "config", "progress")}
    temporary = path.with_suffix(".tmp")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    save_file(tensors, temporary, metadata={_HEADER_KEY: json.dumps(document)})
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def read_state(folder: Path) -> State | None:
    """The state of the training in `folder`; None if there is none.

    Raises:
        UsageError: it is damaged, or `folder` cannot be a folder.
    """
    if files := [place for place in (folder, *folder.parents) if place.is_file()]:
        raise UsageError(f"{folder} must be a folder, but {files[0]} is a file")
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        file: Any
        with safe_open(path, framework="pt") as file:
            document = json.loads(file.metadata()[_HEADER_KEY])
            return State(**document, tensors={name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as exc:
        raise UsageError(f"{path}: damaged, so the training cannot go on ({exc}); delete it to start anew") from exc


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _differences(old: Any, new: Any, name: str) -> list[str]:
    """`key was X, is Y` for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [text for key in keys for text in _differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))]
    return [] if old == new else [f"{name} was {json.dumps(old)}, is {json.dumps(new)}"]
