"""Tensors out of `.ckpt` and `.pt` files, which are pickles, without running anything that they name.

torch reads them with `weights_only`: tensors, numbers, strings and containers. Training codes leave a few more objects
in their checkpoints (callbacks, arguments); those of known packages are replaced by a placeholder that does nothing.
Any other name is refused, whatever it is.
"""

from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file

from pipeline.errors import ModelError

# What Lightning, omegaconf and argparse leave behind.
_HARMLESS = (
    *("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "argparse.Namespace"),
    *("typing.Any", "collections.defaultdict", "builtins.dict", "builtins.list", "builtins.int"),
)


class _Nothing:
    """Stands for an object of another package: takes whatever it is given, and keeps nothing."""

    def __new__(cls, *_arguments: Any, **_named: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *_arguments: Any, **_named: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, a dictionary; `.safetensors` are read too.

    Raises:
        ModelError: it cannot be read, holds no dictionary, or names what is neither a tensor nor known to be harmless.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except ModelError:
        raise
    except Exception as error:  # whatever the unpickler meets in a damaged file
        raise ModelError(
            f"{path}: cannot be read as a checkpoint of tensors, and nothing of it was run: "
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: must hold a dictionary of tensors, got {type(content).__name__}")
    return content


def _unpickled(path: Path) -> Any:
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if refused := sorted(name for name in names if not name.startswith(_HARMLESS)):
        raise ModelError(
            f"{path}: must hold tensors alone, got a pickle that would call {', '.join(refused[:8])}; nothing of it "
            "was run. If its author can be trusted, save its state_dict alone, as safetensors, and convert that"
        )
    with torch.serialization.safe_globals([(_Nothing, name) for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True)
