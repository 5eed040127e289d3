"""What the clients of stores raise, in the words of this project: the class says whether trying again can help."""

from collections.abc import Mapping

from pipeline.errors import AlreadyExists, NotFound, StorageError, StoreRefused, TokenmillError, UsageError
from pipeline.urls import HTTP_SCHEMES, redact, redact_text, scheme_of

NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ProfileNotFound")
BAD_CALLS = ("ParamValidationError", "NoRegionError", "InvalidRegionError", "InvalidConfigError")
# Answers of kind 4xx that another try may change: timeout, conflict, too early, too many requests; and the codes of
# S3's 400 for a body that was damaged on the way.
PASSING_STATUS = (408, 409, 425, 429)
PASSING_CODES = ("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch")


def translate(error: Exception, url: str) -> TokenmillError:
    """The error of this project that `error`, raised by a client while working on `url`, amounts to.

    Returns:
        NotFound: there is no object.
        AlreadyExists: a create-if-absent met an object.
        UsageError: it will be the same next time (no permission, no bucket, a call that the client refuses).
        StorageError: all else; the same call may succeed later.
    """
    if (
        scheme_of(url) in HTTP_SCHEMES
        and isinstance(error, FileNotFoundError)
        and isinstance(error.__cause__, Exception)
    ):
        error = error.__cause__  # fsspec says "not found" of a server that does not answer, too
    said = redact_text(f"{type(error).__name__}: {error}")
    status, code = answer(error)
    kind: type[TokenmillError] = UsageError
    if code == "NoSuchBucket":
        text = "the bucket does not exist; make it, or check its name and the endpoint"
    elif isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError) or status == 404:
        kind, text = NotFound, "not found"
    elif isinstance(error, FileExistsError) or status == 412:
        kind, text = AlreadyExists, "exists already"
    elif type(error).__name__ in NO_CREDENTIALS:
        text = f"the store's provider chain gives no credentials ({said})"
    elif isinstance(error, PermissionError) or status in (401, 403) or str(error).startswith("Forbidden: "):  # gcsfs
        text = f"permission denied ({said}); check the credentials, the policy and the clock"
    elif status == 501:
        kind, text = StoreRefused, f"the store does not know this kind of request ({said})"
    elif _hopeless(error, status, code):
        text = f"this request cannot work ({said}); check the URL, storage.options and the region"
    else:
        kind, text = StorageError, said
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


def _hopeless(error: Exception, status: int | None, code: str) -> bool:
    """Whether the request is wrong in itself: the client refuses it, or the store does and will again."""
    if isinstance(error, TypeError | NotImplementedError) or type(error) is ValueError:
        return True  # the exact class: a body that is no JSON raises a ValueError of its own
    if status is None:
        return type(error).__name__ in BAD_CALLS
    return 300 <= status < 500 and status not in PASSING_STATUS and code not in PASSING_CODES
