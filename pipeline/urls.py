"""URLs of shards and stores: which are allowed, and the one spelling under which each place is known."""

import os
import re
from pathlib import Path

from pipeline.errors import UsageError

REMOTE_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "az", "hf")
HTTP_SCHEMES = ("http", "https")
_ALIASES = {"gcs": "gs", "abfss": "abfs", "az": "abfs"}  # other names of the same places
_AZURE = ("abfs", "abfss", "az")  # here `container@account` is the place itself, no user

# In the URL of an object store `?` is also a wildcard; a query is what has a name and a value.
_QUERY = re.compile(r"\?[A-Za-z][\w.-]*=.*", re.DOTALL)
_PLACE = re.compile(r"(?:\[[^\]@]*\]|[^:@]*)(?::\d*)?|arn:[^@]*")
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://[^\s'\"<>]+")
_SECRET_IN_TEXT = re.compile(
    r"(?i)\b(x-amz-[\w-]+|x-goog-[\w-]+|sig|signature|awsaccesskeyid|googleaccessid)=[^&\s'\"]+"
)


def scheme_of(url: str) -> str:
    """The URL's scheme, `file` for a plain path.

    Raises:
        UsageError: for `pipe:`, chained `::` URLs, schemes that are not on the allow-list, and credentials.
    """
    if "::" in url:
        raise UsageError(f"chained URLs (::) are refused, got {redact(url)}; name the object itself")
    if url.startswith("pipe:"):
        raise UsageError("pipe: URLs run a shell and are refused; name the object itself (s3://..., gs://..., a path)")
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "file"
    if scheme not in ("file", *REMOTE_SCHEMES, *HTTP_SCHEMES):
        allowed = ", ".join(("file", *REMOTE_SCHEMES))
        raise UsageError(f"unknown URL scheme {scheme!r} in {redact(url)}; must be one of {allowed} (http by opt-in)")
    if scheme != "file" and not _is_plain(scheme, rest.partition("/")[0]):
        raise UsageError(f"credentials in URLs are refused, got {redact(url)}; use the store's own provider chain")
    return scheme


def redact(url: str) -> str:
    """The URL without user, password and query (of http without fragment too): fit for logs and messages."""
    return "::".join(map(_redact_link, url.split("::")))


def _redact_link(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme == "file":
        return url
    rest = re.split("[?#]", rest)[0] if scheme.endswith(HTTP_SCHEMES) else _QUERY.sub("", rest)
    authority, slash, path = rest.partition("/")
    if _is_plain(scheme, authority):
        return f"{scheme}://{authority}{slash}{path}"
    user, at, host = authority.rpartition("@")
    if not at:
        return f"{scheme}://..."  # a secret with a slash in it, which the path goes on with
    return f"{scheme}://{user.partition(':')[0] + at if scheme in _AZURE else ''}{host}{slash}{path}"


def _is_plain(scheme: str, authority: str) -> bool:
    """Whether an authority is a bucket, a host with or without a port, or an access point, and nothing else."""
    if scheme in _AZURE:
        container, at, host = authority.rpartition("@")
        return ":" not in container and (not at or "@" not in container) and _PLACE.fullmatch(host) is not None
    return _PLACE.fullmatch(authority) is not None


def redact_text(text: str) -> str:
    """A message of somebody else's, with every URL in it redacted and every signature blanked."""
    return _SECRET_IN_TEXT.sub(r"\1=...", _URL_IN_TEXT.sub(lambda match: redact(match[0]), text))


def canonical(url: str) -> str:
    """One spelling for one place: absolute `file://` paths, no trailing slash, no aliases of schemes.

    Raises:
        UsageError: if the URL is not allowed (see `scheme_of`), is signed, or names no bucket.
    """
    scheme = scheme_of(url)
    if scheme == "file":
        return "file://" + os.path.abspath(os.path.expanduser(url.removeprefix("file://")))
    if _QUERY.search(url) or (scheme in HTTP_SCHEMES and "?" in url):
        raise UsageError(f"signed or parametrised URLs are refused, got {redact(url)}?...; use the store's own scheme")
    place = redact(url).partition("://")[2].rstrip("/")
    if not place.partition("/")[0]:
        raise UsageError(f"a {scheme}:// URL must name a bucket, container or host, got {redact(url)!r}")
    return f"{_ALIASES.get(scheme, scheme)}://{place}"


def join(folder: str, *names: str) -> str:
    """`folder/name/...` in canonical spelling."""
    return "/".join([canonical(folder), *names])


def local_path(url: str) -> Path | None:
    """The path behind a `file://` URL or plain path, None for a remote URL."""
    return Path(canonical(url).removeprefix("file://")) if scheme_of(url) == "file" else None
