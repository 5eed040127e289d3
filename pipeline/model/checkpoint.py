"""VQ models on disk, in diffusers' layout: find, read, check, write, and identify by content.

    folder/
      config.json
      diffusion_pytorch_model.safetensors                 or, in order of preference,
      diffusion_pytorch_model.safetensors.index.json      the index of a sharded checkpoint
      diffusion_pytorch_model.<variant>.safetensors       (variant: fp16, ...; only if there is one)
      diffusion_pytorch_model.safetensors.index.<variant>.json

Only safetensors are read: `.bin`, `.pt` and `.ckpt` files are pickles, and loading a pickle can run code.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.model.config import CLASS_NAME, VQModelConfig, parse_config
from pipeline.storage import Storage
from pipeline.storage.logs import quiet_clients
from pipeline.urls import redact

CONFIG_NAME = "config.json"
WEIGHTS_STEM = "diffusion_pytorch_model"
WEIGHTS_NAME = f"{WEIGHTS_STEM}.safetensors"

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

# Attention layers of checkpoints that diffusers wrote before version 0.12.
_LEGACY_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LEGACY_KEY = re.compile(rf"(.*\.attentions\.\d+)\.({'|'.join(_LEGACY_ATTENTION)})\.(weight|bias)")

_NAMES_SHOWN = 8  # of a long list of keys


def files_of(stem: str) -> tuple[str, ...]:
    """Patterns of the files that make up a model whose weights are called `stem`."""
    return CONFIG_NAME, f"{stem}*.safetensors", f"{stem}.safetensors.index*.json"


def locate(
    source: str | os.PathLike[str],
    subfolder: str | None,
    revision: str | None,
    storage: Storage | None = None,
    files: tuple[str, ...] = files_of(WEIGHTS_STEM),
) -> Path:
    """The local folder of a model, downloaded into a cache if need be.

    Args:
        source: a local folder, a URL of a folder, or a Hub id.
        subfolder: folder below `source`.
        revision: for Hub ids only.
        storage: of a URL.
        files: patterns of what is wanted from the Hub; from a URL come all files of their kinds.

    Raises:
        ModelError: there is no such folder, URL or Hub repository, or `revision` was given without a Hub id.
        StorageError: the store of a URL did not answer.
    """
    name = os.fspath(source)
    remote = "://" in name
    on_hub = not remote and _HUB_ID.fullmatch(name) is not None and not Path(name).exists()
    if revision is not None and not on_hub:
        raise ModelError(f"revision must be unset unless the model is a Hub id, got {revision!r} for {redact(name)}")
    if on_hub:
        folder = _from_hub(name, subfolder, revision, files) / (subfolder or "")
    elif remote:
        url = f"{name.rstrip('/')}/{subfolder.strip('/')}" if subfolder else name
        kinds = (files[0],) if len(files) == 1 else tuple(sorted({Path(pattern).suffix for pattern in files}))
        folder = (storage or Storage()).localize(url, names=kinds)
    else:
        folder = Path(name).expanduser() / (subfolder or "")
    if not folder.is_dir():
        raise ModelError(
            f"the model must be a folder with {CONFIG_NAME} and safetensors, a URL of one, or a Hub id, got "
            f"{redact(name)}{f' with subfolder {subfolder}' if subfolder else ''}, which has no such folder"
        )
    return folder


def _from_hub(repo: str, subfolder: str | None, revision: str | None, files: tuple[str, ...]) -> Path:
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    patterns = [prefix + pattern for pattern in files]
    quiet_clients()
    from huggingface_hub import snapshot_download  # slow to import, and rarely needed
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as exc:
        raise ModelError(
            f"{repo} is neither a local folder nor could it be read from the Hugging Face Hub "
            f"(revision {revision or 'main'}): {exc}"
        ) from exc


def read_config(folder: Path) -> VQModelConfig:
    """Reads `config.json`.

    Raises:
        ModelError: it is missing, is no JSON object, or describes no VQModel; the text names the file.
    """
    path = folder / CONFIG_NAME
    document = read_json(path)
    try:
        return parse_config(document)
    except ValueError as exc:
        raise ModelError(f"{path}: {exc}") from exc


def read_weights(folder: Path, stem: str = WEIGHTS_STEM) -> dict[str, Tensor]:
    """Reads all tensors, as float32, under diffusers' current names.

    Args:
        folder: of the model.
        stem: what its weight files are called: transformers has `model`.

    Raises:
        ModelError: no safetensors, several variants to choose from, or a damaged file; the text names it.
    """
    path = _weights_file(folder, stem)
    files = _shards(path) if path.suffix == ".json" else [path]
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except (SafetensorError, OSError) as exc:
            raise ModelError(
                f"{file}: the weights cannot be read ({exc}); download or convert the model again"
            ) from exc
    return {_current_name(name): tensor.float() for name, tensor in weights.items()}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Copies `weights` into `model`.

    Raises:
        ModelError: a tensor is missing, unexpected, of another shape or not finite; the text names it and `source`.
    """
    own = model.state_dict()
    shaped = [
        f"{name} (must be {list(own[name].shape)}, got {list(weights[name].shape)})"
        for name in sorted(own.keys() & weights.keys())
        if own[name].shape != weights[name].shape
    ]
    problems = {
        "missing": sorted(own.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - own.keys()),
        "mis-shaped": shaped,
        "not finite": sorted(name for name, tensor in weights.items() if not tensor.isfinite().all()),
    }
    found = [f"{kind}: {_shortened(names)}" for kind, names in problems.items() if names]
    if found:
        raise ModelError(f"{source}: the weights do not fit {CONFIG_NAME}; {'; '.join(found)}")
    model.load_state_dict(weights)


def write(
    config: VQModelConfig, weights: Mapping[str, Tensor], folder: str | os.PathLike[str], dtype: torch.dtype
) -> None:
    """Writes a VQModel into `folder`; each file appears whole or not at all."""
    stored = {name: tensor.to(dtype) for name, tensor in weights.items()}
    write_folder(folder, {"_class_name": CLASS_NAME, **config.model_dump(mode="json")}, stored)


def write_folder(
    folder: str | os.PathLike[str],
    document: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    stem: str = WEIGHTS_STEM,
) -> None:
    """Writes `config.json` and the weights, called `stem`, into `folder`; each file appears whole or not at all."""
    root, name = Path(folder), f"{stem}.safetensors"
    root.mkdir(parents=True, exist_ok=True)
    stored = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    temporary = root / f".{name}.tmp"
    temporary.write_bytes(save(stored, metadata={"format": "pt"}))  # save_file would leave it readable to us alone
    temporary.replace(root / name)
    temporary = root / f".{CONFIG_NAME}.tmp"
    temporary.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(root / CONFIG_NAME)


def weights_hash(model: nn.Module | Mapping[str, Tensor]) -> str:
    """Identity of a model's weights: 64 hex digits of SHA-256 over the tensors, not over files.

    Hashed are, in order of name: the name, the shape, and the values as little-endian float32. So sharding, variants,
    memory format and device do not matter, and weights stored in half precision count as the float32 values they load
    as.
    """
    weights = model.state_dict() if isinstance(model, nn.Module) else model
    digest = hashlib.sha256()
    for name in sorted(weights):
        values = weights[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} float32 {list(values.shape)}\n".encode())
        digest.update(values.numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def _weights_file(folder: Path, stem: str) -> Path:
    """The one file that stands for the weights: safetensors, or the index of a sharded checkpoint."""
    weights = f"{stem}.safetensors"
    for name in (weights, f"{weights}.index.json"):
        if (folder / name).is_file():
            return folder / name
    names = sorted(entry.name for entry in folder.iterdir())
    variant = re.compile(rf"{stem}\.[A-Za-z0-9_]+\.safetensors|{re.escape(weights)}\.index\.\w+\.json")
    variants = [name for name in names if variant.fullmatch(name)]
    if len(variants) == 1:
        return folder / variants[0]
    if variants:
        raise ModelError(f"{folder}: must hold {weights} or one variant of it, got {_shortened(variants)}")
    pickles = [name for name in names if name.endswith(_PICKLE_SUFFIXES)]
    if pickles:
        raise ModelError(
            f"{folder}: the weights must be safetensors, got only {_shortened(pickles)}; such files are pickles, and "
            "loading one can run code. `tokenmill convert` takes over checkpoints of taming-transformers, "
            "latent-diffusion and LlamaGen, without running any; one of diffusers, if you trust it, is converted by "
            "diffusers.VQModel.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(NEW_FOLDER)"
        )
    raise ModelError(f"{folder}: must hold {weights}, got {_shortened(names) or 'an empty folder'}")


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: weight_map must be an object of tensor names and files, got {weight_map!r}")
    files = sorted({str(name) for name in weight_map.values()})
    for file in files:
        # A name from a downloaded file must not lead out of the folder.
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelError(f"{index}: weight_map must name safetensors files of its own folder, got {file!r}")
    return [index.parent / file for file in files]


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ModelError: it is missing or none; the text names the file.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ModelError(f"{path}: missing; a model folder in diffusers' layout has one") from exc
    except (OSError, ValueError) as exc:
        raise ModelError(f"{path}: cannot be read as JSON ({exc})") from exc
    if not isinstance(document, dict):
        raise ModelError(f"{path}: must hold a JSON object, got {type(document).__name__}")
    return document


def _current_name(name: str) -> str:
    match = _LEGACY_KEY.fullmatch(name)
    return f"{match[1]}.{_LEGACY_ATTENTION[match[2]]}.{match[3]}" if match else name


def _shortened(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - _NAMES_SHOWN
    return ", ".join(listed[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
