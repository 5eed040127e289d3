"""URLs of shards and stores: which are allowed, and the one spelling under which each place is known."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import UsageError

REMOTE_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "az", "hf")
HTTP_SCHEMES = ("http", "https")


def scheme_of(url: str) -> str:
    """The URL's scheme, `file` for a plain path.

    Raises:
        UsageError: for `pipe:`, chained `::` URLs and schemes that are not on the allow-list.
    """
    if "::" in url:
        raise UsageError(f"chained URLs (::) are refused, got {redact(url)}; name the object itself")
    if url.startswith("pipe:"):
        raise UsageError("pipe: URLs run a shell and are refused; name the object itself (s3://..., gs://..., a path)")
    scheme, separator, _ = url.partition("://")
    if not separator:
        return "file"
    if scheme not in ("file", *REMOTE_SCHEMES, *HTTP_SCHEMES):
        allowed = ", ".join(("file", *REMOTE_SCHEMES))
        raise UsageError(f"unknown URL scheme {scheme!r} in {redact(url)}; must be one of {allowed} (http by opt-in)")
    return scheme


def redact(url: str) -> str:
    """The URL without user, password, query and fragment: fit for logs and messages."""
    if "://" not in url:
        return url
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    if scheme in HTTP_SCHEMES:
        path = path.partition("?")[0].partition("#")[0]
    return f"{scheme}://{host.rpartition('@')[2] if scheme not in ('abfs', 'abfss') else host}{slash}{path}"


def canonical(url: str) -> str:
    """One spelling for one place: absolute `file://` paths, no trailing slash, no credentials, no signature.

    Raises:
        UsageError: if the URL is not allowed (see `scheme_of`), or is signed.
    """
    scheme = scheme_of(url)
    if scheme == "file":
        return "file://" + os.path.abspath(os.path.expanduser(url.removeprefix("file://")))
    if scheme in HTTP_SCHEMES and urlsplit(url).query:
        raise UsageError(f"signed or parametrised URLs are refused, got {redact(url)}?...; use the store's own scheme")
    return redact(url).rstrip("/")


def join(folder: str, *names: str) -> str:
    """`folder/name/...` in canonical spelling."""
    return "/".join([canonical(folder), *names])


def local_path(url: str) -> Path | None:
    """The path behind a `file://` URL or plain path, None for a remote URL."""
    return Path(canonical(url).removeprefix("file://")) if scheme_of(url) == "file" else None
