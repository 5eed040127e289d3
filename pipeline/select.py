"""Which samples become tokens: the user's own choice, by shards, keys, fields of the JSON sidecar, size.

A sample that is not chosen is neither a row nor a reject, but it is in the accounts, with the rule that left it out.
So a shard that is left out is read too, to count its samples, and becomes a part without rows.
Rules are asked from the cheapest to the dearest: lists and fields before the image is looked at, sizes at its header.
"""

import hashlib
import json
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipeline.errors import Filtered, NotFound, UsageError
from pipeline.storage import Storage
from pipeline.urls import canonical, scheme_of

_OF_SHARDS: Final = ("shards", "without_shards")
LISTS: Final = (*_OF_SHARDS, "keys", "without_keys")  # options that name a file of lines
_CONDITION: Final = re.compile(r"\s*meta((?:\.[^.\s<>=!]+)+)\s*(==|!=|<=|>=|<|>)\s*(.+?)\s*", re.DOTALL)
NO_JSON: Final = (ValueError, RecursionError)  # of `json`: not its syntax or encoding; nested too deeply
_ORDER: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A field of the JSON sidecar compared with a value.

    Attributes:
        path: of the field, from the outside in.
        comparison: `==`, `!=`, `<`, `<=`, `>` or `>=`.
        value: of JSON.
    """

    path: tuple[str, ...]
    comparison: str
    value: Any

    def holds(self, document: Any) -> bool:
        """Whether a document has the field, and its value compares so; numbers and texts never compare with others."""
        found = field_of(document, self.path)
        if found is None or _kind(found) is not _kind(self.value):
            return False
        if self.comparison in _ORDER:
            return _kind(found) in (float, str) and _ORDER[self.comparison](found, self.value)
        return bool(found == self.value) == (self.comparison == "==")


@lru_cache
def parse_condition(text: str) -> Condition:
    """Read `meta.aesthetic > 5`: a path below `meta`, a comparison, and a value in JSON.

    Raises:
        ValueError: it is not of that form.
    """
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ValueError(f"a condition must be like `meta.aesthetic > 5`, got {text!r}")
    path, comparison, literal = match.groups()
    try:
        value = json.loads(literal)
    except ValueError as error:
        raise ValueError(f"the value of a condition must be JSON (texts in double quotes), got {literal}") from error
    if comparison in _ORDER and _kind(value) not in (float, str):
        raise ValueError(f"{comparison} must be followed by a number or a text, got {literal}")
    return Condition(tuple(path[1:].split(".")), comparison, value)


def field_of(document: Any, path: tuple[str, ...]) -> Any:
    """The value at a path of a JSON document; None if there is none."""
    for name in path:
        document = document.get(name) if isinstance(document, dict) else None
    return document


def parse_sidecar(data: bytes | None) -> Any:
    """A JSON sidecar; None if there is none, or it is no JSON that can be read."""
    try:
        return json.loads(data) if data is not None else None
    except NO_JSON:
        return None


def _kind(value: Any) -> type:
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


class SelectConfig(BaseModel):
    """Which samples to tokenize. Sizes are those of the source; a sample must keep every rule."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_side: int | None = Field(None, ge=1, description="at least so high and so wide (pixels)")
    min_pixels: int | None = Field(None, ge=1, description="height x width at least (pixels)")
    max_pixels: int | None = Field(None, ge=1, description="height x width at most (pixels)")
    max_aspect: float | None = Field(None, ge=1, description="longer side over shorter side at most (ratio)")
    where: tuple[str, ...] = Field(
        (), description="conditions on the JSON sidecar, like `meta.aesthetic > 5`; a missing field fails its condition"
    )
    shards: str | None = Field(
        None,
        description="file or URL with one shard per line (URL or absolute path): these shards alone; the others are "
        "read, and counted as filtered",
    )
    without_shards: str | None = Field(None, description="likewise: all shards but these")
    keys: str | None = Field(None, description="file or URL with one key per line: these samples alone")
    without_keys: str | None = Field(None, description="file or URL with one key per line: all samples but these")

    @field_validator("where", mode="before")
    @classmethod
    def _one_or_several(cls, where: Any) -> Any:
        return (where,) if isinstance(where, str) else where

    @field_validator("where")
    @classmethod
    def _readable(cls, where: tuple[str, ...]) -> tuple[str, ...]:
        for text in where:
            parse_condition(text)
        return where

    def size_rule(self, width: int, height: int) -> str | None:
        """The rule that an image of this size breaks, in a few words; None if it keeps all. Turning changes nothing."""
        pixels, short, long = width * height, min(width, height), max(width, height)
        broken = {
            "min_side": self.min_side is not None and short < self.min_side,
            "min_pixels": self.min_pixels is not None and pixels < self.min_pixels,
            "max_pixels": self.max_pixels is not None and pixels > self.max_pixels,
            "max_aspect": self.max_aspect is not None and long > self.max_aspect * short,
        }
        return next((f"{name} {getattr(self, name):g}" for name, is_broken in broken.items() if is_broken), None)


@dataclass(frozen=True)
class Selection:
    """The choice, with its lists read.

    Attributes:
        config: the rules.
        sidecar: extension of the JSON member that `meta` stands for.
        lists: keys, or URLs in canonical spelling, by the name of the option.
        hashes: sha256 of each list, likewise.
    """

    config: SelectConfig = field(default_factory=SelectConfig)
    sidecar: str = "json"
    lists: Mapping[str, frozenset[str]] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, config: SelectConfig, sidecar: str | None, storage: Storage) -> Self:
        """Read the lists of shards and keys.

        Raises:
            UsageError: a list is not there, is not UTF-8, or names a shard by a relative path.
        """
        found = {name: _read_list(storage, name, url) for name in LISTS if (url := getattr(config, name))}
        lists, hashes = {name: one[0] for name, one in found.items()}, {name: one[1] for name, one in found.items()}
        return cls(config, sidecar or "json", lists, hashes)

    def verdict(self, shard: str, key: str, members: Mapping[str, bytes]) -> Filtered | None:
        """Why a sample is left out, as far as can be told without looking at its image.

        Args:
            shard: URL in canonical spelling.
            key, members: of the sample.
        """
        for rule, names in self.lists.items():
            listed = (shard if rule in _OF_SHARDS else key) in names
            if listed == rule.startswith("without"):
                return Filtered(rule)
        if self.config.where:
            document = parse_sidecar(members.get(self.sidecar))
            for text in self.config.where:
                if not parse_condition(text).holds(document):
                    return Filtered(f"where {text}")
        return None

    def describe(self) -> dict[str, Any]:
        """For the fingerprint: the rules that are set, lists by their content; empty if every sample is wanted."""
        return {**self.config.model_dump(mode="json", exclude_defaults=True), **self.hashes}


def keys_in(data: bytes) -> list[str]:
    r"""The keys of a list, one per line. Lines end at `\n` or `\r\n`, not where else `splitlines` cuts: keys may be so.

    Raises:
        ValueError: it is not UTF-8.
    """
    return [key for line in data.decode("utf-8-sig").split("\n") if (key := line.removesuffix("\r"))]


def _read_list(storage: Storage, name: str, url: str) -> tuple[frozenset[str], str]:
    """The keys or shards of a list, and the hash of its bytes."""
    try:
        data = storage.read(url)
        lines = keys_in(data)
    except (NotFound, ValueError) as error:
        what = "shard" if name in _OF_SHARDS else "key"
        raise UsageError(f"select.{name} must be a text file with one {what} per line, got {url}: {error}") from error
    names = (_shard(name, line) for line in lines) if name in _OF_SHARDS else lines
    return frozenset(names), hashlib.sha256(data).hexdigest()


def _shard(name: str, line: str) -> str:
    """A shard of a list, as shards are known."""
    line = line.strip()
    if scheme_of(line) == "file" and not line.startswith(("/", "file:///")):  # actors stand in folders of their own
        raise UsageError(f"select.{name} must name shards by URL or absolute path, got {line!r}")
    return canonical(line)
