"""What comes along with an image: members and fields of the JSON sidecar, as the columns of its rows."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pipeline.select import NO_JSON, field_of, parse_sidecar
from pipeline.tokens.schema import ColumnsConfig, FieldKind, FieldSource

_LARGEST: Final = (1 << 63) - 1  # of an int64
_JSON: Final = "json"  # the member of `meta.` fields, if none is stored
_TYPES: Final[Mapping[FieldKind, tuple[type, ...]]] = {
    FieldKind.INT: (int,),
    FieldKind.FLOAT: (int, float),
    FieldKind.BOOL: (bool,),
    FieldKind.STRING: (str,),
}
_READ: Final[Mapping[FieldKind, Callable[[bytes], Any]]] = {
    FieldKind.INT: int,
    FieldKind.FLOAT: float,
    FieldKind.JSON: json.loads,
}


@dataclass(frozen=True, slots=True)
class Sidecars:
    """The values of one sample; the same for each of its views.

    Attributes:
        caption, label, meta: see `ColumnsConfig`.
        fields: the values of `ColumnsConfig.fields`, in their order.
    """

    caption: str | None
    label: int | None
    meta: str | None
    fields: tuple[Any, ...] = ()

    def filled(self, columns: ColumnsConfig) -> set[str]:
        """The columns that have a value."""
        values = {"caption": self.caption, "label": self.label, "meta": self.meta}
        values.update(zip(columns.fields, self.fields, strict=True))
        return {name for name, value in values.items() if value is not None}


def read_sidecars(members: Mapping[str, bytes], columns: ColumnsConfig, warnings: Counter[str]) -> Sidecars:
    """The columns of a sample.

    Args:
        members: content by extension.
        columns: what to take.
        warnings: counts what is there and not as announced; its column is null.
    """
    document = parse_sidecar(members.get(columns.meta or _JSON)) if columns.fields else None
    return Sidecars(
        _text(members, columns.caption, "caption", warnings),
        _label(members, columns.label, warnings),
        _text(members, columns.meta, "meta", warnings),
        tuple(_field(name, columns.source(name), members, document, warnings) for name in columns.fields),
    )


def _text(members: Mapping[str, bytes], extension: str | None, column: str, warnings: Counter[str]) -> str | None:
    data = members.get(extension) if extension else None
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        warnings[f"{column}_not_utf8"] += 1
        return data.decode(errors="replace")


def _label(members: Mapping[str, bytes], extension: str | None, warnings: Counter[str]) -> int | None:
    data = members.get(extension) if extension else None
    label = None if data is None else _typed(data, FieldKind.INT)
    warnings.update({"label_not_int64": 1} if data is not None and label is None else {})
    return label


def _field(
    name: str, source: FieldSource, members: Mapping[str, bytes], document: Any, warnings: Counter[str]
) -> Any | None:
    """One column of `columns.fields`."""
    if source.member and source.kind is FieldKind.STRING:
        return _text(members, source.member, name, warnings)
    there = members.get(source.member) if source.member else field_of(document, source.path)
    value = None if there is None else _typed(there, source.kind)
    if there is not None and value is None:
        warnings[f"{name}_not_{source.kind}"] += 1
    if isinstance(value, str) and (text := _whole_characters(value)) != value:
        warnings[f"{name}_not_utf8"] += 1
        return text
    return value


def _typed(value: Any, kind: FieldKind) -> Any | None:
    """A value of JSON, or the bytes of a member, as one of a column's type; None if it is none."""
    try:
        if isinstance(value, bytes):
            value = _READ[kind](value)
        if kind is FieldKind.JSON:
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        if type(value) not in _TYPES[kind] or (kind is FieldKind.INT and abs(value) > _LARGEST):
            return None
        return float(value) if kind is FieldKind.FLOAT else value
    except (*NO_JSON, OverflowError):  # the last: an integer beyond the range of a float
        return None


def _whole_characters(text: str) -> str:
    """A text with U+FFFD for each half of a pair that stands alone: JSON can spell such a half, UTF-8 cannot.

    Captions that were cut after some number of UTF-16 units end in one.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
