"""What the clients of stores raise, in the words of this project: the class says whether trying again can help."""

from collections.abc import Mapping

from pipeline.errors import AlreadyExists, NotFound, StorageError, StoreRefused, TokenmillError, UsageError
from pipeline.storage.addresses import PrivateAddress
from pipeline.urls import HTTP_SCHEMES, redact, redact_text

NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ProfileNotFound")
# Credentials that were good once: newer ones may be had. A signature's time is wrong when a request waited too long.
STALE_CODES = (
    "ExpiredToken",
    "ExpiredTokenException",
    "TokenRefreshRequired",
    "RequestExpired",
    "RequestTimeTooSkewed",
)
BUSY_CODES = ("SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "ServerBusy", "RequestLimitExceeded")
BAD_CALLS = (
    *("ParamValidationError", "NoRegionError", "InvalidRegionError", "InvalidConfigError"),  # botocore
    *("InvalidUrlClientError", "InvalidUrlRedirectClientError", "NonHttpUrlRedirectClientError"),  # aiohttp
)
# Answers of kind 4xx that another try may change: timeout, conflict, too early, too many requests; and the codes of
# S3's 400 for a body that was damaged on the way.
PASSING_STATUS = (408, 409, 425, 429)
PASSING_CODES = ("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch")
OBJECT_CODES = ("InvalidRequest",)  # S3's 400 that speaks of one object, as the KMS.* do: its encryption


class Busy(StorageError):
    """The store asks for fewer requests."""


class StaleCredentials(StorageError):
    """The store refuses credentials that were good once."""


class NoCredentials(UsageError):
    """The provider chain gave none; a metadata service that is asked by many at once says so, too."""


class Forbidden(UsageError):
    """The store knows the caller and says no."""


class RequestRefused(UsageError):
    """The store will not do this with this object: the key that it is encrypted with is disabled, say."""


def translate(error: Exception, url: str) -> TokenmillError:
    """The error of this project that `error`, raised by a client while working on `url`, amounts to.

    Returns:
        NotFound: there is no object.
        AlreadyExists: a create-if-absent met an object.
        StaleCredentials, NoCredentials: the provider chain must be asked anew.
        Forbidden: no permission.
        RequestRefused: the store will not do it with this object, for another reason.
        UsageError: it will be the same next time for a reason of ours (no bucket, a call that the client refuses).
        Busy: the store asks for fewer requests.
        StorageError: all else; the same call may succeed later.
    """
    error = _unwrapped(error, url)
    said = redact_text(f"{type(error).__name__}: {error}")
    status, code = answer(error)
    kind: type[TokenmillError] = UsageError
    if isinstance(error.__cause__, PrivateAddress):
        text = f"leads to a private address, which storage.allow_private_hosts would allow ({said})"
    elif code == "NoSuchBucket":
        text = "the bucket does not exist; make it, or check its name and the endpoint"
    elif isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError) or status in (404, 410):
        kind, text = NotFound, "not found"
    elif isinstance(error, FileExistsError) or status == 412:
        kind, text = AlreadyExists, "exists already"
    elif type(error).__name__ in NO_CREDENTIALS:
        kind, text = NoCredentials, f"the store's provider chain gives no credentials ({said})"
    elif code in STALE_CODES:
        kind, text = StaleCredentials, f"the credentials have expired, or the clock is wrong ({said})"
    elif isinstance(error, PermissionError) or status in (401, 403) or str(error).startswith("Forbidden: "):  # gcsfs
        kind, text = Forbidden, f"permission denied ({said}); check the credentials, the policy and the clock"
    elif status == 501:
        kind, text = StoreRefused, f"the store does not know this kind of request ({said})"
    elif _hopeless(error, status, code):
        kind = RequestRefused if code.startswith("KMS.") or code in OBJECT_CODES or status == 451 else UsageError
        text = f"this request cannot work ({said}); check the URL, storage.options and the region"
    else:
        kind, text = (Busy if status in (429, 503) or code in BUSY_CODES else StorageError), said
    return kind(f"{redact(url)}: {text}")


def answer(error: BaseException) -> tuple[int | None, str]:
    """HTTP status and error code of the answer that a client's exception goes back to; (None, "") if there was none."""
    link: BaseException | None = error
    while link is not None:
        response = getattr(link, "response", None)
        if isinstance(response, Mapping):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, str(response.get("Error", {}).get("Code", ""))
        # huggingface_hub has it in the response, azure and aiohttp in the exception, gcsfs in its HttpError. (Other
        # classes have a `code` too: aiohttp gives 400 to a body that was cut.)
        told = [
            getattr(response, "status_code", None),
            getattr(link, "status_code", None),
            getattr(link, "status", None),
        ]
        if type(link).__name__ == "HttpError":
            told.append(getattr(link, "code", None))
        for status in told:
            if isinstance(status, int):
                return status, ""
        link = link.__cause__
    return None, ""


def _unwrapped(error: Exception, url: str) -> Exception:
    """What a client met, where it raises something else instead."""
    inner: BaseException | None = None
    if url.partition("://")[0] in HTTP_SCHEMES and isinstance(error, FileNotFoundError):
        inner = error.__cause__  # fsspec says "not found" of a server that does not answer, too
    elif isinstance(error, IndexError) and isinstance(error.__context__, OSError):
        inner = error.__context__  # s3fs looks for a number in errors that have none, as timeouts
    elif type(error) is RuntimeError:
        inner = error.__cause__  # huggingface_hub, of an upload
    return inner if isinstance(inner, Exception) else error


def _hopeless(error: Exception, status: int | None, code: str) -> bool:
    """Whether the request is wrong in itself: the client refuses it, or the store does and will again."""
    if isinstance(error, TypeError | NotImplementedError) or type(error) is ValueError:
        return True  # the exact class: a body that is no JSON raises a ValueError of its own
    if status is None:
        return type(error).__name__ in BAD_CALLS
    return 300 <= status < 500 and status not in PASSING_STATUS and code not in PASSING_CODES
