"""Checkpoints of other codes into model folders, once, before any job: no job ever opens a pickle.

    taming-transformers, latent-diffusion, Chameleon's own  .ckpt and YAML             -> VQModel
    LlamaGen, Janus's own                                   .pt and VQ-8, VQ-16, YAML  -> VQModel
    Chameleon, Emu3, Janus of transformers                  the whole model's folder   -> its image tokenizer's folder

Nothing is guessed: a tensor that is missing, left over or of another shape is an error. What belongs to training, or to
the model around the tokenizer, is left out and counted.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.encoding import ModelConfig
from pipeline.errors import ModelError
from pipeline.model import Tokenizer, VQModel, VQModelConfig
from pipeline.model.checkpoint import CONFIG_NAME, load_weights, read_json, write_folder
from pipeline.tokenizers.families import TRANSFORMERS_STEM, load_tokenizer
from pipeline.tokenizers.pickled import read_checkpoint
from pipeline.tokenizers.vqgan import (
    CODEBOOK,
    LLAMAGEN,
    ema_of,
    llamagen_config,
    of_unit_length,
    renamed,
    taming_config,
)

# Models around a tokenizer, and wrappers, put these before its names.
_PREFIXES = ("first_stage_model.", "gen_vision_model.", "module.", "_orig_mod.")
# Beside the tokenizer: losses, averages, usage statistics, the accumulators of a codebook that is a moving average.
_NOT_NEEDED = (
    *("loss.", "model_ema.", "colorize", "quantize.codebook_used"),
    *("quantize.embedding.cluster_size", "quantize.embedding.embed_avg"),
)
_WHOLE = {"chameleon": "ChameleonVQVAE", "emu3": "Emu3VQVAE", "janus": "JanusVQVAE"}  # model_type -> tokenizer's class
_OF_LLAMAGEN = "encoder.conv_blocks."  # begins names that taming's VQGAN does not have
_VQ = "vqmodel."  # where transformers' models keep it


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was made.

    Attributes:
        tokenizer: as loaded again from the folder.
        weights: hash of its tensors.
        averaged: whether the moving averages were taken.
        left_out: first word of the names of tensors that do not belong to it -> how many.
    """

    tokenizer: Tokenizer
    weights: str
    averaged: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict)


def convert(source: Path, to: Path, config: str | None = None, *, averages: bool | None = None) -> Conversion:
    """Writes a model folder, after it was loaded again and tried.

    Args:
        source: a checkpoint, or the folder of a whole model in transformers' layout.
        to: the folder to write; it must not hold a model.
        config: a YAML of the checkpoint's code, or LlamaGen's `VQ-8` or `VQ-16`; nothing for a folder.
        averages: take moving averages of the weights where there are some, instead of the weights. None: yes, but not
            of LlamaGen, whose `extract_codes_c2i.py` and `_t2i.py` take `model` and leave `ema`.

    Raises:
        ModelError: the source cannot be read, is no tokenizer, or cannot be expressed here; the text says why.
    """
    if (to / CONFIG_NAME).exists():
        raise ModelError(f"--to must be a folder without a model, got {to}, which has a {CONFIG_NAME}")
    if to.is_file():
        raise ModelError(f"--to must be a folder, got {to}, which is a file")
    to.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=to, prefix=".draft-") as folder:
        draft = Path(folder)
        if source.is_dir():
            averaged, left_out = False, _take_out(source, draft)
        else:
            averaged, left_out = _convert_vqgan(source, draft, config, averages=averages)
        tokenizer = load_tokenizer(ModelConfig(path=folder))  # as every job will
        _try(tokenizer, source)
        for file in sorted(draft.iterdir(), key=lambda file: file.name == CONFIG_NAME):  # that makes it a model
            file.replace(to / file.name)
    return Conversion(tokenizer, tokenizer.weights_hash(), averaged, left_out)


def _convert_vqgan(source: Path, to: Path, config: str | None, *, averages: bool | None) -> tuple[bool, dict[str, int]]:
    """Write a VQModel; returns whether it has averages, and what was left out."""
    content = read_checkpoint(source)
    sections = [section for section in content.values() if isinstance(section, dict)]
    llamagen = any(_OF_LLAMAGEN in str(name) for section in (content, *sections) for name in section)
    if averages is None:
        averages = not llamagen
    weights, averaged = _weights(content, source, averages=averages)
    own, left_out = _own(weights)
    if averages and (kept := ema_of(weights, own)):
        own, averaged = kept, True
    if not llamagen and not any(name.startswith("encoder.down.") for name in own):
        raise ModelError(
            f"{source}: must hold a VQGAN of taming-transformers, latent-diffusion or LlamaGen, got tensors such as "
            f"{', '.join(sorted(weights)[:4])}"
        )
    geometry, unit_length = _geometry(config, source, llamagen=llamagen)
    own = renamed(own, len(geometry.block_out_channels))
    if unit_length and CODEBOOK in own:
        own[CODEBOOK] = of_unit_length(own[CODEBOOK])
    model = VQModel(geometry)
    load_weights(model, {name: tensor.float() for name, tensor in own.items()}, source)
    model.save_pretrained(to)
    return averaged, left_out


def _weights(content: Mapping[str, Any], source: Path, *, averages: bool) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a checkpoint; and whether they are averages."""
    order = ("ema", "model", "state_dict") if averages else ("model", "state_dict")
    chosen = next((name for name in order if isinstance(content.get(name), dict)), None)
    found = content if chosen is None else content[chosen]
    weights = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not weights:
        raise ModelError(f"{source}: must hold tensors, got {', '.join(map(str, list(found)[:8])) or 'nothing'}")
    return weights, chosen == "ema"


def _own(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The tokenizer's tensors, and how many others there are by their first word."""
    own, around = dict(weights), []
    for prefix in _PREFIXES:
        if inner := {name.removeprefix(prefix): value for name, value in own.items() if name.startswith(prefix)}:
            around += [name for name in own if not name.startswith(prefix)]
            own = inner
    around += [name for name in own if name.startswith(_NOT_NEEDED)]
    kept = {name: value for name, value in own.items() if not name.startswith(_NOT_NEEDED)}
    return kept, dict(Counter(name.partition(".")[0] for name in around))


def _geometry(config: str | None, source: Path, *, llamagen: bool) -> tuple[VQModelConfig, bool]:
    """What the user says that the checkpoint is, and whether its codes are unit vectors."""
    if config is None:
        kind = f"LlamaGen: {' or '.join(LLAMAGEN)}, or a YAML of its arguments" if llamagen else "taming: its YAML"
        raise ModelError(f"{source}: --config must tell the geometry (this is a VQGAN of {kind})")
    if config in LLAMAGEN:
        document: Any = {"encoder_ch_mult": LLAMAGEN[config], "decoder_ch_mult": LLAMAGEN[config]}
    else:
        try:
            document = yaml.safe_load(Path(config).read_bytes())
        except (OSError, yaml.YAMLError, ValueError) as error:
            raise ModelError(f"--config {config}: cannot be read as YAML: {error}") from error
    if not isinstance(document, dict):
        raise ModelError(f"--config {config}: must be a mapping, got {type(document).__name__}")
    try:
        return llamagen_config(document) if llamagen else (taming_config(document), False)
    except ValueError as error:
        raise ModelError(f"--config {config}: cannot be expressed as a VQModel: {error}") from error


def _take_out(source: Path, to: Path) -> dict[str, int]:
    """Write the image tokenizer of a whole model in transformers' layout; returns what was left out."""
    document = read_json(source / CONFIG_NAME)
    name = _WHOLE.get(str(document.get("model_type")))
    if name is None:
        raise ModelError(f"{source}: model_type must be one of {', '.join(_WHOLE)}, got {document.get('model_type')!r}")
    weights, left_out = dict[str, Tensor](), Counter[str]()
    for file in sorted(source.glob("*.safetensors")):
        try:
            weights |= _picked(file, left_out)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: the weights cannot be read ({error}); download the model again") from error
    if not weights:
        raise ModelError(f"{source}: must hold safetensors with the image tokenizer ({_VQ}*), got none")
    write_folder(to, {**document.get("vq_config", {}), "architectures": [name]}, weights, TRANSFORMERS_STEM)
    return dict(left_out)


def _picked(file: Path, left_out: Counter[str]) -> dict[str, Tensor]:
    """The image tokenizer's tensors in a file of a whole model; the others are counted."""
    weights: dict[str, Tensor] = {}
    with safe_open(file, framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 - no mapping
            _, found, inner = key.rpartition(_VQ)
            if found:
                weights[inner] = tensors.get_tensor(key)
            else:
                left_out[inner.partition(".")[0]] += 1
    return weights


def _try(tokenizer: Tokenizer, source: Path) -> None:
    """Encode an image of noise, and decode it if that is possible."""
    side = 8 * tokenizer.downsample
    noise = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = tokenizer.encode_latents(noise)
    images = tokenizer.decode_indices(tokenizer.to_indices(latents)) if tokenizer.decodes else latents
    if not (latents.isfinite().all() and images.isfinite().all()):
        raise ModelError(f"{source}: gives infinite values for an image of noise; is the checkpoint whole?")
