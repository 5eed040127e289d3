"""What a row of tokens is, and the document in the footer that makes a Parquet file a part.

Rows: identity (`shard`, `sample_index`, `view`), the indices of the grid in row-major order, the geometry of the crop
in source pixels, and what came along with the image. Indices are raw: no BOS, no offset into a text vocabulary.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import Reject, Stage

SCHEMA_VERSION = 1
FOOTER_KEY = b"tokenmill"
MAX_UINT16_CODES = 1 << 16


class ColumnsConfig(BaseModel):
    """Which sidecar members of a sample become columns; null switches one off."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    caption: str | None = Field("txt", description="extension of the member that holds the caption, UTF-8")
    label: str | None = Field("cls", description="extension of the member that holds a class number")
    meta: str | None = Field("json", description="extension of the member that is stored whole as JSON text")


@dataclass(frozen=True, slots=True)
class TokenSpec:
    """The shape of one image's tokens.

    Attributes:
        codebook_size: K; indices are in [0, K).
        grid_height, grid_width: h and w of the token grid; a row holds h * w indices.
    """

    codebook_size: int
    grid_height: int
    grid_width: int

    @property
    def tokens_per_view(self) -> int:
        return self.grid_height * self.grid_width

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint16 as long as every index fits, else uint32."""
        return np.dtype(np.uint16 if self.codebook_size <= MAX_UINT16_CODES else np.uint32)


@dataclass(frozen=True, slots=True)
class Row:
    """One view of one sample, all but its tokens."""

    key: str
    sample_index: int
    view: int
    height: int
    width: int
    crop: tuple[float, float, float, float]
    flip: bool
    caption: str | None
    label: int | None
    meta: str | None


def arrow_schema(spec: TokenSpec, columns: ColumnsConfig) -> pa.Schema:
    """The Arrow schema of a part's rows."""
    fields = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("sample_index", pa.uint32(), nullable=False),
        pa.field("view", pa.uint8(), nullable=False),
        pa.field("tokens", pa.list_(pa.from_numpy_dtype(spec.dtype), spec.tokens_per_view), nullable=False),
        pa.field("grid_height", pa.uint16(), nullable=False),
        pa.field("grid_width", pa.uint16(), nullable=False),
        pa.field("height", pa.uint32(), nullable=False),
        pa.field("width", pa.uint32(), nullable=False),
        pa.field("crop", pa.list_(pa.float32(), 4), nullable=False),
        pa.field("flip", pa.bool_(), nullable=False),
    ]
    optional = {"caption": pa.string(), "label": pa.int64(), "meta": pa.string()}
    fields += [pa.field(name, kind) for name, kind in optional.items() if getattr(columns, name) is not None]
    return pa.schema(fields)


def to_arrow(
    rows: Sequence[Row], tokens: npt.NDArray[Any], *, shard: str, spec: TokenSpec, columns: ColumnsConfig
) -> pa.RecordBatch:
    """Rows and their tokens as one record batch.

    Args:
        rows: N rows.
        tokens: [N, h, w] indices of any integer dtype.
        shard: canonical URL of the shard.

    Raises:
        ValueError: the tokens do not have the shape of `spec`, or an index lies outside [0, codebook_size).
    """
    count = len(rows)
    if tokens.shape != (count, spec.grid_height, spec.grid_width):
        raise ValueError(f"tokens must be {(count, spec.grid_height, spec.grid_width)}, got {tokens.shape}")
    if count and not (tokens.min() >= 0 and tokens.max() < spec.codebook_size):
        raise ValueError(
            f"indices must be in [0, {spec.codebook_size}), got values from {tokens.min()} to {tokens.max()}"
        )
    schema = arrow_schema(spec, columns)
    crops = np.array([row.crop for row in rows], np.float32).reshape(-1)
    flat = np.ascontiguousarray(tokens, spec.dtype).reshape(-1)
    values: dict[str, Any] = {
        "shard": pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([shard])),
        "tokens": pa.FixedSizeListArray.from_arrays(pa.array(flat), spec.tokens_per_view),
        "grid_height": np.full(count, spec.grid_height, np.uint16),
        "grid_width": np.full(count, spec.grid_width, np.uint16),
        "crop": pa.FixedSizeListArray.from_arrays(pa.array(crops), 4),
    }
    arrays = [
        pa.array(values[f.name] if f.name in values else [getattr(row, f.name) for row in rows], f.type) for f in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


# --- the footer ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RejectedSample:
    """A sample that could not become rows."""

    key: str
    sample_index: int
    reject: Reject


@dataclass(frozen=True, slots=True)
class Counts:
    """The accounts of one shard: `samples == tokenized + rejects`; `rows` counts views, so `rows >= tokenized`."""

    samples: int
    tokenized: int
    rows: int
    rejects: int

    def balanced(self) -> bool:
        """Whether every sample is accounted for exactly once."""
        return self.samples == self.tokenized + self.rejects


@dataclass(frozen=True, slots=True)
class PartFooter:
    """What a part says about itself. Holds no time, host or attempt: equal work gives equal bytes.

    Attributes:
        fingerprint: of all that decides which tokens come out.
        shard: `id`, `url`, `size` (bytes) and `etag` of the source.
        spec: codebook size and grid of the tokens.
        counts: the accounts.
        rejects: every rejected sample, in tar order.
        warnings: how often something odd but harmless was met, by name.
    """

    fingerprint: str
    shard: Mapping[str, Any]
    spec: TokenSpec
    counts: Counts
    rejects: Sequence[RejectedSample] = ()
    warnings: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Canonical JSON; the rejects as zstd-compressed JSON in base64 under `rejects`."""
        rejects = [
            [r.key, r.sample_index, r.reject.stage.value, r.reject.reason, r.reject.detail] for r in self.rejects
        ]
        packed = pa.compress(canonical_json(rejects), codec="zstd", asbytes=True) if rejects else b""
        document = {
            "schema": SCHEMA_VERSION,
            "fingerprint": self.fingerprint,
            "shard": dict(self.shard),
            "spec": asdict(self.spec),
            "counts": asdict(self.counts),
            "warnings": dict(sorted(self.warnings.items())),
            "rejects": base64.b64encode(packed).decode(),
            "rejects_bytes": len(canonical_json(rejects)) if rejects else 0,
        }
        return canonical_json(document)

    @classmethod
    def from_json(cls, data: bytes) -> "PartFooter":
        """Read what `to_json` wrote.

        Raises:
            ValueError: the document is damaged, or of a schema that this version does not know.
        """
        document = json.loads(data)
        if document.get("schema") != SCHEMA_VERSION:
            raise ValueError(f"footer schema must be {SCHEMA_VERSION}, got {document.get('schema')!r}")
        size = document["rejects_bytes"]
        rejects: list[list[Any]] = []
        if size:
            packed = base64.b64decode(document["rejects"])
            rejects = json.loads(pa.decompress(packed, decompressed_size=size, codec="zstd", asbytes=True))
        return cls(
            fingerprint=document["fingerprint"],
            shard=document["shard"],
            spec=TokenSpec(**document["spec"]),
            counts=Counts(**document["counts"]),
            rejects=tuple(
                RejectedSample(k, i, Reject(Stage(s), reason, detail)) for k, i, s, reason, detail in rejects
            ),
            warnings=document["warnings"],
        )


def canonical_json(value: object) -> bytes:
    """The one JSON spelling of a value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
