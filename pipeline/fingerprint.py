"""The identity of tokens: a hash over everything that decides which tokens come out, and nothing that only tunes."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.tokens.schema import SCHEMA_VERSION, canonical_json


def identity(
    *,
    weights: str,
    model: Mapping[str, Any],
    image: Mapping[str, Any],
    precision: str,
    columns: Mapping[str, Any],
    select: Mapping[str, Any],
) -> dict[str, Any]:
    """What goes into the fingerprint, readable.

    Args:
        weights: hash of the model's tensors.
        model: the model's configuration.
        image: recipe and decode policy with every parameter.
        precision: arithmetic of the encoder.
        columns: which sidecars are stored.
        select: which samples are wanted; empty for all.
    """
    return {
        "schema": SCHEMA_VERSION,
        "weights": weights,
        "model": dict(model),
        "image": dict(image),
        "precision": precision,
        "columns": dict(columns),
        **({"select": dict(select)} if select else {}),
    }


def fingerprint(of: Mapping[str, Any]) -> str:
    """sha256 (hex) of the canonical JSON of an identity."""
    return hashlib.sha256(canonical_json(of)).hexdigest()


def differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """One line for each leaf that differs: `image.size: 256 there, 128 here`."""
    for key in sorted({*there, *here}):
        old, new = there.get(key), here.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{prefix}{key}.")
        elif canonical_json(old) != canonical_json(new):
            yield f"{prefix}{key}: {old} there, {new} here"
