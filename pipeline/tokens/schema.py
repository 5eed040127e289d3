"""What a row of tokens is, and the document in the footer that makes a Parquet file a part.

Rows: identity (`shard`, `sample_index`, `view`), the indices of the grid in row-major order, the geometry of the crop
in source pixels, and what came along with the image. Indices are raw: no BOS, no offset into a text vocabulary.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipeline.errors import Reject, Stage

Grids = npt.NDArray[Any] | Sequence[npt.NDArray[Any]]

SCHEMA_VERSION = 1
FOOTER_KEY = b"tokenmill"
MAX_UINT16_CODES = 1 << 16
COLUMNS: Final = {  # column -> what it holds
    "key": "WebDataset's key of the sample, with its folders",
    "shard": "full URL of the shard, without credentials and signatures",
    "sample_index": "position of the sample in the shard: with `shard` and `view`, the row's identity",
    "view": "0, unless the recipe cuts several views from an image",
    "tokens": "indices into the codebook, row-major; uint32 above 65,536 codes, lists of any length where grids vary",
    "grid_height": "rows of the grid",
    "grid_width": "columns of the grid",
    "height": "of the source, after its EXIF rotation (pixels)",
    "width": "of the source, after its EXIF rotation (pixels)",
    "crop": "top, left, height, width of what was seen of the source (pixels)",
    "flip": "whether it was mirrored",
    "caption": "text of the member `columns.caption`",
    "label": "number of the member `columns.label`",
    "meta": "the JSON sidecar `columns.meta`, whole",
}
RESERVED_COLUMNS: Final = frozenset(COLUMNS)


class FieldKind(StrEnum):
    """Types that a column of the user's can have."""

    INT = "int"
    FLOAT = "float"
    BOOL = "bool"
    STRING = "string"
    JSON = "json"  # any value, as its text


_ARROW: Final = {
    FieldKind.INT: pa.int64(),
    FieldKind.FLOAT: pa.float64(),
    FieldKind.BOOL: pa.bool_(),
    FieldKind.STRING: pa.string(),
    FieldKind.JSON: pa.string(),
}
_SOURCE: Final = re.compile(r"\s*(?:meta\.(?P<path>[^\s:]+)|(?P<member>[^\s:]+))\s*:\s*(?P<kind>\w+)\s*")
_NAME: Final = re.compile(r"[a-z_][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class FieldSource:
    """Where a column of the user's comes from.

    Attributes:
        path: of a field of the JSON sidecar, from the outside in; empty for a member.
        member: extension of a member; empty for a field.
        kind: the column's type.
    """

    path: tuple[str, ...]
    member: str
    kind: FieldKind


@lru_cache  # asked for every sample
def parse_source(text: str) -> FieldSource:
    """Read `meta.aesthetic: float` or `ocr.txt: string`.

    Raises:
        ValueError: it is not of that form.
    """
    match = _SOURCE.fullmatch(text)
    if match is None or match["kind"] not in list(FieldKind):
        kinds = ", ".join(FieldKind)
        raise ValueError(f"must be `meta.NAME: TYPE` or `EXTENSION: TYPE`, the type one of {kinds}; got {text!r}")
    kind = FieldKind(match["kind"])
    if match["member"] and kind is FieldKind.BOOL:
        raise ValueError(f"a member must be int, float, string or json, got {text!r}")
    path = tuple(match["path"].split(".")) if match["path"] else ()
    return FieldSource(path, match["member"] or "", kind)


class ColumnsConfig(BaseModel):
    """Which sidecar members of a sample become columns; null switches one off."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    caption: str | None = Field("txt", description="extension of the member that holds the caption, UTF-8")
    label: str | None = Field("cls", description="extension of the member that holds a class number")
    meta: str | None = Field("json", description="extension of the member that is stored whole as JSON text")
    fields: dict[str, str] = Field(
        {},
        description="more columns by name: `meta.aesthetic: float` for a field of the JSON sidecar, `ocr.txt: string` "
        "for a member; int, float, bool, string or json",
    )

    @field_validator("fields")
    @classmethod
    def _readable(cls, fields: dict[str, str]) -> dict[str, str]:
        for name, text in fields.items():
            if not _NAME.fullmatch(name) or name in RESERVED_COLUMNS:
                raise ValueError(f"columns.fields: must be a new name of a-z, 0-9 and _, got {name!r}")
            parse_source(text)
        return dict(sorted(fields.items()))  # the order of the columns is no choice

    def source(self, name: str) -> FieldSource:
        """Where a column of `fields` comes from."""
        return parse_source(self.fields[name])

    def describe(self) -> dict[str, Any]:
        """For the fingerprint."""
        return self.model_dump(exclude=set() if self.fields else {"fields"})


@dataclass(frozen=True, slots=True)
class TokenSpec:
    """The shape of one image's tokens.

    Attributes:
        codebook_size: K; indices are in [0, K).
        grid_height, grid_width: h and w of the token grid; a row holds h * w indices. Both are 0 where the grids of a
            run have several shapes.
    """

    codebook_size: int
    grid_height: int
    grid_width: int

    @property
    def varies(self) -> bool:
        """Whether rows have grids of several shapes."""
        return self.grid_height == 0

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
    fields: tuple[Any, ...] = ()


def _tokens_type(spec: TokenSpec) -> pa.DataType:
    code = pa.from_numpy_dtype(spec.dtype)
    return pa.list_(code) if spec.varies else pa.list_(code, spec.tokens_per_view)


def arrow_schema(spec: TokenSpec, columns: ColumnsConfig) -> pa.Schema:
    """The Arrow schema of a part's rows."""
    fields = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("sample_index", pa.uint32(), nullable=False),
        pa.field("view", pa.uint8(), nullable=False),
        pa.field("tokens", _tokens_type(spec), nullable=False),
        pa.field("grid_height", pa.uint16(), nullable=False),
        pa.field("grid_width", pa.uint16(), nullable=False),
        pa.field("height", pa.uint32(), nullable=False),
        pa.field("width", pa.uint32(), nullable=False),
        pa.field("crop", pa.list_(pa.float32(), 4), nullable=False),
        pa.field("flip", pa.bool_(), nullable=False),
    ]
    optional = {"caption": pa.string(), "label": pa.int64(), "meta": pa.string()}
    fields += [pa.field(name, kind) for name, kind in optional.items() if getattr(columns, name) is not None]
    fields += [pa.field(name, _ARROW[columns.source(name).kind]) for name in columns.fields]
    return pa.schema(fields)


def to_arrow(
    rows: Sequence[Row], tokens: Grids, *, shard: str, spec: TokenSpec, columns: ColumnsConfig
) -> pa.RecordBatch:
    """Rows and their tokens as one record batch.

    Args:
        rows: N rows.
        tokens: [N, h, w] indices of any integer dtype, or N grids [h, w].
        shard: canonical URL of the shard.

    Raises:
        ValueError: the tokens do not have the shape of `spec`, or an index lies outside [0, codebook_size).
    """
    count = len(rows)
    schema = arrow_schema(spec, columns)
    crops = np.array([row.crop for row in rows], np.float32).reshape(-1)
    column = _tokens_array(tokens, count, spec)
    heights, widths = np.array([grid.shape for grid in tokens], np.uint16).reshape(-1, 2).T
    values: dict[str, Any] = {
        "shard": pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([shard])),
        "tokens": column,
        "grid_height": heights,
        "grid_width": widths,
        "crop": pa.FixedSizeListArray.from_arrays(pa.array(crops), 4),
        **{name: [row.fields[number] for row in rows] for number, name in enumerate(columns.fields)},
    }
    arrays = [
        pa.array(values[f.name] if f.name in values else [getattr(row, f.name) for row in rows], f.type) for f in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _tokens_array(tokens: Grids, count: int, spec: TokenSpec) -> pa.Array:
    """The column of tokens, checked."""
    if spec.varies:
        flat = np.concatenate([np.empty(0, np.int64), *(grid.reshape(-1) for grid in tokens)])
    else:
        expected, grids = (count, spec.grid_height, spec.grid_width), np.asarray(tokens)
        if grids.shape != expected:
            raise ValueError(f"tokens must be {expected}, got {grids.shape}")
        flat = grids.reshape(-1)
    if len(flat) and not (flat.min() >= 0 and flat.max() < spec.codebook_size):
        raise ValueError(f"indices must be in [0, {spec.codebook_size}), got values from {flat.min()} to {flat.max()}")
    codes = pa.array(flat.astype(spec.dtype, copy=False))
    if not spec.varies:
        return pa.FixedSizeListArray.from_arrays(codes, spec.tokens_per_view)
    offsets = np.cumsum([0, *(grid.size for grid in tokens)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), codes)


# --- the footer ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RejectedSample:
    """A sample that could not become rows."""

    key: str
    sample_index: int
    reject: Reject


@dataclass(frozen=True, slots=True)
class Counts:
    """The accounts of one shard: `samples == tokenized + rejects + filtered`.

    `rows` counts views, so `rows >= tokenized`; `filtered` are the samples that the user did not want.
    """

    samples: int
    tokenized: int
    rows: int
    rejects: int
    filtered: int = 0

    @property
    def wanted(self) -> int:
        """The samples that were not filtered out."""
        return self.samples - self.filtered

    def balanced(self) -> bool:
        """Whether every sample is accounted for exactly once."""
        return self.samples == self.tokenized + self.rejects + self.filtered


@dataclass(frozen=True, slots=True)
class PartFooter:
    """What a part says about itself. Holds no time, host or attempt: equal work gives equal bytes.

    Attributes:
        fingerprint: of all that decides which tokens come out.
        shard: `id`, `url`, `size` (bytes) and `etag` of the source.
        spec: codebook size and grid of the tokens.
        counts: the accounts.
        rejects: every rejected sample, in tar order.
        filtered: the indices of the samples that the user did not want, ascending, by the rule that they break.
        warnings: how often something odd but harmless was met, by name.
    """

    fingerprint: str
    shard: Mapping[str, Any]
    spec: TokenSpec
    counts: Counts
    rejects: Sequence[RejectedSample] = ()
    warnings: Mapping[str, int] = field(default_factory=dict)
    filtered: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Canonical JSON; `rejects` and `filtered` are zstd-compressed JSON in base64."""
        rejects = [
            [r.key, r.sample_index, r.reject.stage.value, r.reject.reason, r.reject.detail] for r in self.rejects
        ]
        filtered = {rule: list(indices) for rule, indices in sorted(self.filtered.items())}
        document = {
            "schema": SCHEMA_VERSION,
            "fingerprint": self.fingerprint,
            "shard": dict(self.shard),
            "spec": asdict(self.spec),
            "counts": asdict(self.counts),
            "warnings": dict(sorted(self.warnings.items())),
            **_packed("rejects", rejects),
            **_packed("filtered", filtered),
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
        rejects: list[list[Any]] = _unpacked("rejects", document) or []
        return cls(
            fingerprint=document["fingerprint"],
            shard=document["shard"],
            spec=TokenSpec(**document["spec"]),
            counts=Counts(**document["counts"]),
            rejects=tuple(
                RejectedSample(k, i, Reject(Stage(s), reason, detail)) for k, i, s, reason, detail in rejects
            ),
            warnings=document["warnings"],
            filtered=_unpacked("filtered", document) or {},
        )


def _packed(name: str, value: Any) -> dict[str, Any]:
    """An entry of the footer, compressed, and how many bytes it has when it is not."""
    plain = canonical_json(value) if value else b""
    packed = pa.compress(plain, codec="zstd", asbytes=True) if value else b""
    return {name: base64.b64encode(packed).decode(), f"{name}_bytes": len(plain)}


def _unpacked(name: str, document: Mapping[str, Any]) -> Any:
    """What `_packed` made; None if it was empty, or the footer is older than the entry."""
    size = document.get(f"{name}_bytes", 0)
    if not size:
        return None
    return json.loads(
        pa.decompress(base64.b64decode(document[name]), decompressed_size=size, codec="zstd", asbytes=True)
    )


def canonical_json(value: object) -> bytes:
    """The one JSON spelling of a value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
