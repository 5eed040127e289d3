"""Encoders and decoders as TorchScript files, with FSQ or LFQ between them: exports of Cosmos, and MAGVIT-v2's kind.

    folder/
      config.json    {"_class_name": "TorchScriptTokenizer", ...}, see `ScriptedConfig`
      encoder.jit
      decoder.jit

TorchScript is a program: loading and running it can do what its author likes. So nothing is opened unless the user
allows it (`model.allow_torchscript`), and with `model.sha256` nothing but the very files that were meant.
"""

import copy
import hashlib
import io
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from pipeline.encoding import ModelConfig, ValueRange
from pipeline.errors import ModelError
from pipeline.model import Tokenizer
from pipeline.model.checkpoint import CONFIG_NAME, read_json
from pipeline.tokenizers.formulas import Formula, Fsq, Lfq

FILES = ("encoder.jit", "decoder.jit")
_PROBE = 4  # tokens along a side of the image that a model is tried with


class ScriptedConfig(BaseModel):
    """The config.json of such a folder. Cosmos's DI models: fsq, encoder_gives codes, encoder_output 1, indices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantizer: Literal["fsq", "lfq"] = Field(..., description="formula between encoder and decoder")
    levels: tuple[int, ...] = Field((), description="of fsq: values per channel, the lowest digit first")
    bits: int = Field(18, description="of lfq: channels, one bit each")
    high_first: bool = Field(False, description="of lfq: the first channel is the highest bit of the index")
    downsample: int = Field(..., ge=1, description="pixels per token along one side")
    encoder_gives: Literal["latents", "codes"] = Field("latents", description="codes: quantized already")
    encoder_output: int = Field(0, ge=0, description="which one, where the encoder gives several")
    decoder_takes: Literal["codes", "indices"] = Field("codes", description="float [B, D, h, w], or int [B, h, w]")

    @property
    def formula(self) -> Formula:
        """The quantizer.

        Raises:
            ValueError: its parameters are out of range.
        """
        return Fsq(self.levels) if self.quantizer == "fsq" else Lfq(self.bits, self.high_first)


class ScriptedTokenizer(Tokenizer):
    """A tokenizer whose layers are programs.

    Args:
        config: what lies between them.
        encoder: images [B, 3, H, W] to latents or codes [B, D, h, w].
        decoder: codes or indices to images.
        digest: sha256 of the two files.
        value_range: of the pixels that it was trained on.
    """

    def __init__(
        self, config: ScriptedConfig, encoder: Any, decoder: Any, digest: str, value_range: ValueRange | str
    ) -> None:
        super().__init__(value_range)
        self.config, self._formula, self._digest = config, config.formula, digest
        self.encoder, self.decoder = encoder.float(), decoder.float()
        self._dtype = torch.float32

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self._formula.codebook_size

    @property
    def downsample(self) -> int:
        """Pixels per token along one side."""
        return self.config.downsample

    def describe(self) -> dict[str, Any]:
        """Its configuration."""
        return {"family": type(self).__name__, **self.config.model_dump(mode="json")}

    def weights_hash(self) -> str:
        """The sha256 of the two files: they are programs, of which the tensors are only a part."""
        return self._digest

    def prepared(self, device: torch.device) -> Self:
        """On `device`; a program's layers are as its author left them."""
        return self.to(device).eval()

    def with_half_encoder(self, dtype: torch.dtype) -> Self:
        """With an encoder all of whose weights are of `dtype`: autocast does not reach into every program."""
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.encoder, other._dtype = copy.deepcopy(self.encoder).to(dtype), dtype
        return other

    def to_latents(self, pixels: Tensor) -> Tensor:
        """What the encoder gives: latents, or codes."""
        # unoptimised: else the first calls would differ from later ones
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            given = self.encoder(pixels.contiguous().to(self._dtype))
        latents: Tensor = given if isinstance(given, Tensor) else given[self.config.encoder_output]
        return latents.float()

    def to_indices(self, latents: Tensor) -> Tensor:
        """By the formula."""
        read = self._formula.indices if self.config.encoder_gives == "latents" else self._formula.indices_of_codes
        return read(latents)

    def to_images(self, indices: Tensor) -> Tensor:
        """Through the decoder."""
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            images: Tensor = self.decoder(
                indices if self.config.decoder_takes == "indices" else self._formula.codes(indices)
            )
        return images.float()


def load(folder: Path, config: ModelConfig) -> ScriptedTokenizer:
    """Loads the two programs, if the user allows it.

    Raises:
        ModelError: it is not allowed, a file is missing, damaged, not the one that was meant, or gives what config.json
            does not say.
    """
    if not config.allow_torchscript:
        raise ModelError(
            f"{folder}: is a TorchScript model, a program that can do anything when it is loaded. If you trust who "
            "made it, set model.allow_torchscript=true (decode: --allow-torchscript), best with model.sha256"
        )
    try:
        document = {name: value for name, value in read_json(folder / CONFIG_NAME).items() if name != "_class_name"}
        described = ScriptedConfig.model_validate(document)
        formula = described.formula
    except (ValidationError, ValueError) as error:
        raise ModelError(f"{folder / CONFIG_NAME}: describes no TorchScript model: {error}") from error
    try:
        files = [(folder / name).read_bytes() for name in FILES]
    except OSError as error:
        raise ModelError(f"{folder}: must hold {' and '.join(FILES)}: {error}") from error
    digest = hashlib.sha256(b"".join(hashlib.sha256(file).digest() for file in files)).hexdigest()
    if config.sha256 and config.sha256 != digest:
        raise ModelError(f"{folder}: the files' hash must be {config.sha256}, got {digest}; nothing of them was run")
    try:
        encoder, decoder = (torch.jit.load(io.BytesIO(file), map_location="cpu") for file in files)  # type: ignore[no-untyped-call]
        tokenizer = ScriptedTokenizer(described, encoder, decoder, digest, config.value_range).eval()
        _try(tokenizer, formula.dims)
    except RuntimeError as error:
        raise ModelError(f"{folder}: the programs cannot be run on images: {error}") from error
    return tokenizer


def _try(tokenizer: ScriptedTokenizer, dims: int) -> None:
    """See that an image comes out as config.json says."""
    side = _PROBE * tokenizer.downsample
    latents = tokenizer.encode_latents(torch.zeros(1, 3, side, side))
    if latents.shape != (1, dims, _PROBE, _PROBE):
        raise RuntimeError(
            f"the encoder must give [1, {dims}, {_PROBE}, {_PROBE}] for {side} x {side} pixels, got "
            f"{list(latents.shape)}"
        )
    images = tokenizer.decode_indices(tokenizer.to_indices(latents))
    if images.shape != (1, 3, side, side):
        raise RuntimeError(f"the decoder must give [1, 3, {side}, {side}], got {list(images.shape)}")
