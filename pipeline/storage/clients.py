"""How each client of a store is told to send a request once, to cut silence, and to leave credentials to its chain."""

import os
from collections.abc import Mapping
from functools import partial, wraps
from typing import Any

from pipeline.storage import hub
from pipeline.storage.addresses import public_session
from pipeline.storage.config import StorageConfig
from pipeline.urls import HTTP_SCHEMES

CONNECT_SECONDS = 10
CONNECTIONS = 64  # of one client, which all threads of a process share
METADATA_ATTEMPTS = 5  # botocore's own default asks a metadata service once, for one second


def client_options(scheme: str, config: StorageConfig) -> dict[str, Any]:
    """Keyword arguments for the client of a scheme; what the user gives wins."""
    options: dict[str, Any] = {"use_listings_cache": False, **config.options}
    if scheme == "s3":
        options |= _of_s3(config)
    elif scheme == "gs":
        # gcsfs' other client asks a second API over gRPC, with a minute of retries of its own
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        options = {"requests_timeout": _aiohttp_timeout(config), **options}
    elif scheme == "abfs":
        options = {"connection_timeout": CONNECT_SECONDS, "read_timeout": config.stall_seconds, **options}
    elif scheme in HTTP_SCHEMES:
        options["client_kwargs"] = {"timeout": _aiohttp_timeout(config), **options.get("client_kwargs", {})}
        if not config.allow_private_hosts:
            options["get_client"] = public_session  # tests/security holds it
    return options


def send_once(scheme: str, client: Any, config: StorageConfig) -> None:
    """Turn off what a client repeats by itself and cannot be told by an option."""
    if scheme == "s3":
        client.retries = 1  # requests, not repeats
    elif scheme == "gs":
        once = getattr(type(client)._request, "__wrapped__", None)  # without its decorator, which repeats 6 times
        if once is not None:
            client._request = partial(once, client)
    elif scheme == "abfs":
        # adlfs passes neither on to all calls
        client.service_client._config.retry_policy.total_retries = 0
        client.service_client._pipeline._transport.connection_config.read_timeout = config.stall_seconds
        _read_azure_bodies_once()
    elif scheme == "hf":
        hub.send_once(client, config.stall_seconds)


def _read_azure_bodies_once() -> None:
    """Azure's client asks three times for a body that breaks, a second apart: but for errors that it does not know."""
    from azure.storage.blob.aio import _download_async as module  # comes with adlfs

    read = module.process_content
    if hasattr(read, "__wrapped__"):
        return

    @wraps(read)
    async def once(*arguments: Any) -> bytes:
        try:
            return await read(*arguments)
        except Exception as error:
            raise ConnectionError(f"the body broke: {error}") from error

    vars(module)["process_content"] = once


def _of_s3(config: StorageConfig) -> dict[str, Any]:
    os.environ.setdefault("AWS_METADATA_SERVICE_NUM_ATTEMPTS", str(METADATA_ATTEMPTS))
    given: Mapping[str, Any] = config.options
    quiet = {
        "retries": {"total_max_attempts": 1},
        "read_timeout": config.stall_seconds,
        "connect_timeout": CONNECT_SECONDS,
        "max_pool_connections": CONNECTIONS,
    }
    return {"config_kwargs": {**quiet, **given.get("config_kwargs", {})}}


def _aiohttp_timeout(config: StorageConfig) -> Any:
    from aiohttp import ClientTimeout  # comes with fsspec's clients of http and gs

    return ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=config.stall_seconds)
