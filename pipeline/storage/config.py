"""How stores are reached; credentials never stand here."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

# Of the clients' arguments, and of those that they pass on: to the store's own client, as headers, for encryption.
SECRET_NAME = re.compile(
    "key|secret|token|passw|credential|authorization|cookie|connection_string|^username$", re.IGNORECASE
)
PUBLIC_NAMES = ("ssekmskeyid", "bucketkeyenabled")  # s3_additional_kwargs: they name a key, and are none
NOT_SECRET = ("anon", "cloud", "google_default")  # values of gcsfs' `token` that name a way to log in


class StorageConfig(BaseModel):
    """How stores are reached. Credentials never stand here: they come from the provider chain of the store."""

    # `hide_input_in_errors`: the refusal of a secret must not print it.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    options: Mapping[str, Any] = Field(
        {}, description="keyword arguments for the fsspec filesystem (endpoint_url, anon, requester_pays, ...)"
    )
    stall_seconds: float = Field(
        60.0,
        gt=0,
        description="a request that stays silent so long is cut; an upload has 1 more for each MiB (seconds)",
    )
    retry_seconds: float = Field(
        120.0,
        ge=0,
        description="how long one request is tried again in all; those for one shard may lose as much together for "
        "each GiB begun (seconds)",
    )
    allow_http: bool = Field(False, description="allow http(s):// inputs, from public addresses")
    allow_private_hosts: bool = Field(
        False, description="allow http(s):// inputs from private and loopback addresses too"
    )

    @field_validator("options")
    @classmethod
    def _no_secrets(cls, options: Mapping[str, Any]) -> Mapping[str, Any]:
        if named := sorted(set(_secrets(options))):
            raise ValueError(
                f"storage.options must not hold credentials, got {', '.join(named)}; use the store's own provider "
                "chain instead (environment, profile, instance or workload identity)"
            )
        return options


def _secrets(options: Mapping[str, Any]) -> Iterator[str]:
    """The names of options, nested ones too, that hold a credential."""
    for name, value in options.items():
        for inner in value if isinstance(value, list | tuple) else [value]:
            if isinstance(inner, Mapping):
                yield from _secrets(inner)
        if isinstance(value, str) and re.search("://[^/]*@", value):
            yield f"{name} (with a user in its URL)"
        elif not isinstance(value, Mapping) and _is_secret(name) and value not in (None, True, False, *NOT_SECRET):
            yield name


def _is_secret(name: str) -> bool:
    return SECRET_NAME.search(name) is not None and name.lower() not in PUBLIC_NAMES
