"""Which family a model folder belongs to, by its config.json, and who loads it.

A family from outside this repository registers itself as an entry point of the group `tokenmill.tokenizers`: its name
is the `_class_name` of its config.json, its object a `Load`. Nothing that a model folder says is ever imported.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pipeline.encoding import ModelConfig
from pipeline.errors import ModelError, TokenmillError
from pipeline.model import Tokenizer, VQModel
from pipeline.model.checkpoint import CONFIG_NAME, WEIGHTS_STEM, files_of, locate, read_json
from pipeline.storage import Storage
from pipeline.urls import redact

GROUP = "tokenmill.tokenizers"
SCRIPTED = "TorchScriptTokenizer"
TRANSFORMERS_STEM = "model"  # of the weight files in transformers' layout
EVERYTHING = ("*.json", "*.safetensors")  # what is fetched for a family from outside

# transformers' `model_type`, for folders whose config.json names no class.
_MODEL_TYPES = {"chameleon_vqgan": "ChameleonVQVAE", "emu3_vqgan": "Emu3VQVAE", "janus_vqgan": "JanusVQVAE"}

Load = Callable[[Path, ModelConfig], Tokenizer]


@dataclass(frozen=True, slots=True)
class Family:
    """How the models of one class are loaded.

    Attributes:
        load: a local folder and the configuration to a tokenizer in float32 on the CPU, in eval mode.
        files: patterns of the files that it reads.
    """

    load: Load
    files: tuple[str, ...]


def load_tokenizer(config: ModelConfig, storage: Storage | None = None) -> Tokenizer:
    """Loads the model of a run, whatever its family; float32, in eval mode, on the CPU.

    Args:
        config: `path`, `subfolder` and `revision` tell where it is; its config.json, which family loads it.
        storage: how to reach the store of a URL; None for the defaults.

    Raises:
        ModelError: the model cannot be found or read, is of an unknown family, or would run code without leave.
    """
    where = config.path, config.subfolder, config.revision, storage
    name = class_name(read_json(locate(*where, files=(CONFIG_NAME,)) / CONFIG_NAME))
    family = find_family(name)
    folder = locate(*where, files=family.files)
    try:
        tokenizer = family.load(folder, config)
    except TokenmillError:
        raise
    except Exception as error:
        raise ModelError(f"{redact(config.path)}: {name} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(tokenizer, Tokenizer):
        raise ModelError(f"{GROUP}: {name} must give a pipeline.model.Tokenizer, got {type(tokenizer).__name__}")
    return tokenizer


def class_name(document: Mapping[str, Any]) -> str:
    """The class that a config.json is of: diffusers' and our own `_class_name`, transformers' `architectures`."""
    if "_class_name" in document:
        return str(document["_class_name"])
    if architectures := document.get("architectures"):
        return str(architectures[0]) if isinstance(architectures, list) else str(architectures)
    return _MODEL_TYPES.get(str(document.get("model_type")), "VQModel")


def find_family(name: str) -> Family:
    """The family of a class name.

    Raises:
        ModelError: there is none, or several packages claim the name; the text lists those that there are.
    """
    found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if len(found) + (name in _BUILT_IN) > 1:
        owners = ", ".join(sorted(entry.value for entry in found))
        ours = " beside ours" if name in _BUILT_IN else ""
        raise ModelError(f"{GROUP}: {name} must be registered once, got {owners}{ours}; uninstall the others")
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    if not found:
        known = ", ".join(sorted({*_BUILT_IN, *(entry.name for entry in entry_points(group=GROUP))}))
        raise ModelError(
            f"{CONFIG_NAME}: the model must be of a family that is known here ({known}), got {name!r}; `tokenmill "
            "convert` takes the image tokenizer out of a whole language model, and other families come in by a package "
            f"of their own (entry point {GROUP}, docs/tokenizers.md)"
        )
    try:
        return Family(found[0].load(), EVERYTHING)
    except Exception as error:
        raise ModelError(f"{GROUP}: {found[0].value} cannot be imported: {type(error).__name__}: {error}") from error


def _vq_model(folder: Path, config: ModelConfig) -> Tokenizer:
    return VQModel.from_pretrained(folder, value_range=config.value_range)


def _of_transformers(folder: Path, config: ModelConfig) -> Tokenizer:
    try:
        from pipeline.tokenizers import transformers_vq
    except ImportError as error:
        raise ModelError(
            f"{folder}: models of transformers need the extra `transformers`; pip install 'tokenmill[transformers]' "
            f"({error})"
        ) from error
    return transformers_vq.load(folder, config)


def _scripted(folder: Path, config: ModelConfig) -> Tokenizer:
    from pipeline.tokenizers import scripted

    return scripted.load(folder, config)


_TRANSFORMERS = Family(_of_transformers, files_of(TRANSFORMERS_STEM))
_BUILT_IN: dict[str, Family] = {
    "VQModel": Family(_vq_model, files_of(WEIGHTS_STEM)),
    **dict.fromkeys(_MODEL_TYPES.values(), _TRANSFORMERS),
    SCRIPTED: Family(_scripted, (CONFIG_NAME, "encoder.jit", "decoder.jit")),
}
